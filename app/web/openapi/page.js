// Shows the description of the service that this page comes from.
"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dress();
dark.addEventListener("change", dress);
SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#api",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  // The keys that are entered stay in the page: gone when it is closed.
  persistAuthorization: false,
  // Otherwise, Swagger's own service would be asked to check the document.
  validatorUrl: null,
});
