// Shows times in the reader's time zone, and keeps open pages up to date.
"use strict";

const REFRESH_SECONDS = 10;
const relative = new Intl.RelativeTimeFormat("en", { numeric: "always" });

// Says the same as `ago` in formatting.py.
function ago(then) {
  const seconds = (then - Date.now()) / 1000;
  if (Math.abs(seconds) < 5) return "just now";
  for (const [unit, size] of [["day", 86400], ["hour", 3600]]) {
    const count = Math.abs(seconds) / size;
    // 61 minutes are 1 hour, but 90 minutes stay 90 minutes.
    if ((count >= 0.98 && count < 1.25) || count >= 1.95) return relative.format(Math.round(seconds / size), unit);
  }
  if (Math.abs(seconds) >= 59) return relative.format(Math.round(seconds / 60), "minute");
  return relative.format(Math.round(seconds), "second");
}

// Includes the time zone, except on the axes and readouts of charts: the page's footer has it too.
function exactly(then, unit) {
  const parts = { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };
  if (unit === "second") Object.assign(parts, { second: "2-digit", timeZoneName: "short" });
  return then.toLocaleString([], parts);
}

// Charts: the value under the pointer, or chosen with the arrow keys, in words.
function show(chart, point) {
  for (const one of chart.querySelectorAll(".point.current")) one.classList.remove("current");
  const readout = chart.parentElement.querySelector(".readout");
  readout.textContent = point ? `${exactly(new Date(point.dataset.at), "minute")}: ${point.dataset.says}` : "";
  if (point) point.classList.add("current");
}

function middle(point) {
  const box = point.getBoundingClientRect();
  return box.x + box.width / 2;
}

function pointAt(chart, x) {
  const distance = (point) => Math.abs(middle(point) - x);
  return [...chart.querySelectorAll(".point")].reduce((a, b) => (distance(b) < distance(a) ? b : a));
}

document.addEventListener("pointermove", (event) => {
  const chart = event.target.closest?.(".drawing");
  if (chart?.querySelector(".point")) show(chart, pointAt(chart, event.clientX));
});
document.addEventListener("keydown", (event) => {
  const chart = event.target.closest?.(".drawing");
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const points = chart ? [...chart.querySelectorAll(".point")] : [];
  if (!step || !points.length) return;
  event.preventDefault();
  const now = points.findIndex((point) => point.classList.contains("current"));
  show(chart, points[now < 0 ? points.length - 1 : Math.min(Math.max(now + step, 0), points.length - 1)]);
});

function showTimes(root) {
  for (const title of root.querySelectorAll(".drawing title")) title.remove(); // the readouts say more
  for (const time of root.querySelectorAll("time[datetime]")) {
    const then = new Date(time.dateTime);
    if (time.dataset.exact) time.textContent = exactly(then, time.dataset.exact);
    else {
      time.textContent = ago(then);
      time.title = exactly(then, "second");
    }
  }
}

// Whether the reader is using a part: it has the focus, an expanded line or selected text.
function isInUse(part) {
  const selected = document.getSelection();
  return part.contains(document.activeElement) || part.querySelector("details[open]") !== null ||
    (selected && !selected.isCollapsed && part.contains(selected.anchorNode));
}

let hasInput = false;

// Whether a reload would lose something: typed text, or an expanded line.
function wouldDisturb() {
  return hasInput || document.activeElement.matches("input, select, textarea") ||
    document.querySelector("details[open]") !== null;
}

function partNames(page) {
  return [...page.querySelectorAll("[data-live]")].map((part) => part.dataset.live).join();
}

// Fetch the page again. Throws an Error with the reason if that fails.
async function fetchPage() {
  let reply, text;
  try {
    reply = await fetch(location.href, {
      headers: { Accept: "text/html", "X-Auto-Refresh": "true" },
      signal: AbortSignal.timeout(REFRESH_SECONDS * 1000),
    });
    text = await reply.text();
  } catch {
    throw new Error("The service is unreachable.");
  }
  if (reply.redirected) throw new Error("You are logged out. Reload the page to log in again.");
  const page = new DOMParser().parseFromString(text, "text/html");
  if (reply.ok) return page;
  const message = page.querySelector("main .note.bad");
  throw new Error(message ? message.textContent : `The service replied with status ${reply.status}.`);
}

let updated = new Date();
const warning = document.createElement("p");
warning.className = "note warn";

// Warn that the page is out of date, and why; without a reason, remove the warning.
function warnOutdated(reason) {
  if (!reason) {
    warning.remove();
    return;
  }
  const since = updated.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const text = `Not updated since ${since}. ${reason}`;
  // Screen readers repeat it whenever it is set.
  if (warning.textContent !== text) warning.textContent = text;
  if (!warning.isConnected) document.getElementById("messages").append(warning);
}

let needsReload = false;

async function refresh() {
  const page = await fetchPage();
  // The parts differ, for example, once the first cohort has arrived.
  needsReload = partNames(page) !== partNames(document);
  if (needsReload && !wouldDisturb()) {
    location.reload();
    return;
  }
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = page.querySelector(`[data-live="${part.dataset.live}"]`);
    if (fresh && !isInUse(part)) part.replaceChildren(...fresh.childNodes);
    showTimes(part);
  }
  updated = new Date();
  warnOutdated("");
}

function scheduleRefresh() {
  setTimeout(async () => {
    try {
      if (!document.hidden) await refresh();
    } catch (error) {
      warnOutdated(error.message);
    }
    scheduleRefresh();
  }, REFRESH_SECONDS * 1000);
}

showTimes(document);
document.getElementById("zone").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (document.querySelector("[data-live]")) {
  setInterval(() => showTimes(document), REFRESH_SECONDS * 1000);
  scheduleRefresh();
  document.addEventListener("input", () => { hasInput = true; });
  document.addEventListener("focusout", (event) => {
    // A reload now would interrupt if the focus moves on to another control.
    const movesOn = event.relatedTarget?.matches("a, button, input, select, textarea, summary");
    if (needsReload && !movesOn) setTimeout(() => wouldDisturb() || location.reload());
  });
}
