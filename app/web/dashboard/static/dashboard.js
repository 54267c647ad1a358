// What a script makes better: times in the reader's own zone, and pages that keep up by themselves.
"use strict";

const SECONDS_BETWEEN_LOOKS = 10;
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "always", style: "short" });

function ago(then) {
  const seconds = (then - Date.now()) / 1000;
  if (Math.abs(seconds) < 5) return "just now";
  const [unit, size] = UNITS.find(([name, size]) => Math.abs(seconds) >= 2 * size || name === "second");
  return relative.format(Math.round(seconds / size), unit);
}

function tellTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const then = new Date(time.dateTime);
    const exact = then.toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
    if (time.hasAttribute("data-exact")) time.textContent = exact;
    else {
      time.textContent = ago(then);
      time.title = exact;
    }
  }
}

// Whether somebody is in the middle of something in a part of the page.
function inUse(part) {
  const selected = document.getSelection();
  return part.contains(document.activeElement) || part.querySelector("details[open]") !== null ||
    (selected && !selected.isCollapsed && part.contains(selected.anchorNode));
}

let isFilledIn = false;

// Whether a reload would take something from somebody: what is typed, or a line that was opened.
function wouldDisturb() {
  return isFilledIn || document.activeElement.matches("input, select, textarea") ||
    document.querySelector("details[open]") !== null;
}

// Which parts a page has.
function names(page) {
  return [...page.querySelectorAll("[data-live]")].map((part) => part.dataset.live).join();
}

// The page as it is now. Throws an Error that says why it can't be had.
async function look() {
  let reply, text;
  try {
    reply = await fetch(location.href, {
      headers: { Accept: "text/html", "X-Look": "true" },
      signal: AbortSignal.timeout(SECONDS_BETWEEN_LOOKS * 1000),
    });
    text = await reply.text();
  } catch {
    throw new Error("The service can’t be reached.");
  }
  if (reply.redirected) throw new Error("You are logged out. Reload the page to log in again.");
  const page = new DOMParser().parseFromString(text, "text/html");
  if (reply.ok) return page;
  const told = page.querySelector("main .note.bad");
  throw new Error(told ? told.textContent : `The service answers with ${reply.status}.`);
}

let updated = new Date();
const bar = document.createElement("p");
bar.className = "note warn";

// Say that what is shown grows old, and why; nothing where it doesn't.
function tellOld(why) {
  if (!why) {
    bar.remove();
    return;
  }
  const since = updated.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const text = `Not updated since ${since}. ${why}`;
  // Screen readers say it again whenever it is set.
  if (bar.textContent !== text) bar.textContent = text;
  if (!bar.isConnected) document.getElementById("told").append(bar);
}

let hasBecomeAnother = false;

async function refresh() {
  const page = await look();
  // As when the first cohort has arrived.
  hasBecomeAnother = names(page) !== names(document);
  if (hasBecomeAnother && !wouldDisturb()) {
    location.reload();
    return;
  }
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = page.querySelector(`[data-live="${part.dataset.live}"]`);
    if (fresh && !inUse(part)) part.replaceChildren(...fresh.childNodes);
    tellTimes(part);
  }
  updated = new Date();
  tellOld("");
}

function keepUp() {
  setTimeout(async () => {
    try {
      if (!document.hidden) await refresh();
    } catch (error) {
      tellOld(error.message);
    }
    keepUp();
  }, SECONDS_BETWEEN_LOOKS * 1000);
}

tellTimes(document);
if (document.querySelector("[data-live]")) {
  setInterval(() => tellTimes(document), SECONDS_BETWEEN_LOOKS * 1000);
  keepUp();
  document.addEventListener("input", () => { isFilledIn = true; });
  // Not where the focus goes to something that is about to be used.
  document.addEventListener("focusout", (event) => {
    const goesOn = event.relatedTarget?.matches("a, button, input, select, textarea, summary");
    if (hasBecomeAnother && !goesOn) setTimeout(() => wouldDisturb() || location.reload());
  });
}
