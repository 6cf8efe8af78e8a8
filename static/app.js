// What a page does beyond plain links and forms. Nothing here is needed to use the product:
// without it the theme button posts, dialogs open (popovers), and pages are read anew.
"use strict";

// Controls that need a script, and buttons that a script makes needless (app.css).
document.documentElement.classList.add("js");

// ---- theme: at once, and remembered in the cookie that the server reads
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.id !== "theme" || !event.submitter) return;
  event.preventDefault();
  const theme = event.submitter.value;
  document.documentElement.dataset.theme = theme;
  document.cookie = `theme=${theme};path=/;max-age=31536000;samesite=lax`;
  for (const button of form.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.value === theme));
  }
});

// ---- live: one tick for all parts that poll; none while nobody looks or a dialog is open
const TICK_MS = 3000;
const mayTick = () =>
  document.visibilityState === "visible" && !document.querySelector(".dialog:popover-open");
const tick = () => {
  if (mayTick()) document.body.dispatchEvent(new CustomEvent("tick"));
};
if (document.querySelector("[hx-trigger]")) {
  setInterval(tick, TICK_MS);
  document.addEventListener("visibilitychange", tick);
}
const stale = (isStale) => {
  const bar = document.getElementById("stale");
  if (bar) bar.hidden = !isStale;
};
for (const name of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) {
  document.addEventListener(name, () => stale(true));
}
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful || event.detail.xhr?.status === 304) stale(false);
});

// ---- filters that need no button
for (const select of document.querySelectorAll("[data-submits]")) {
  select.addEventListener("change", () => select.form.requestSubmit());
}

// ---- log: follow the end until the reader scrolls up, wrap, and lines by address
function readLog(isFirst) {
  const log = document.getElementById("log-lines");
  if (!log) return;
  const follow = document.getElementById("log-follow");
  const wrap = document.getElementById("log-wrap");
  const toEnd = () => {
    log.scrollTop = log.scrollHeight;
  };
  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  if (isFirst && location.hash.startsWith("#L")) {
    follow.checked = false;
    document.querySelector(location.hash)?.scrollIntoView({ block: "center" });
  } else if (follow.checked) {
    toEnd();
  }
  follow.addEventListener("change", () => follow.checked && toEnd());
  log.addEventListener("scroll", () => {
    if (!atEnd()) follow.checked = false;
  });
  new MutationObserver(() => follow.checked && toEnd()).observe(log, { childList: true });
  wrap.addEventListener("change", () => log.classList.toggle("nowrap", !wrap.checked));
}
readLog(true);
// The log of the next attempt takes the place of the one that ended.
document.addEventListener("htmx:load", (event) => {
  if (event.detail.elt.id === "log") readLog(false);
});

// ---- copy what can be seen only once
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim());
  button.textContent = "Copied";
});

// ---- keys: off in inputs; listed in the account menu
const GO = { r: "/groups/", l: "/leaderboard/", f: "/fleet/", c: "/competitions/", h: "/" };
let went = false;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, [contenteditable]")) return;
  if (went && GO[event.key]) location.assign(GO[event.key]);
  went = event.key === "g";
  if (event.key === "n" && document.querySelector("a[data-key=n]")) location.assign("/groups/new/");
  if (event.key === "/") {
    const search = document.querySelector("input[type=search]");
    if (search) {
      event.preventDefault();
      search.focus();
    }
  }
  if (event.key === "[" || event.key === "]") {
    const link = document.querySelector(`a[data-key="${event.key}"]`);
    if (link) location.assign(link.href);
  }
  moveInGrid(event);
});

// ---- grid: arrows move between cells (one tab stop a row would be 225 stops)
function moveInGrid(event) {
  const cell = event.target.closest?.(".grid a.c");
  if (!cell) return;
  const cells = [...document.querySelectorAll(".grid a.c")];
  const row = [...cell.parentElement.querySelectorAll("a.c")];
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row.length, ArrowUp: -row.length }[event.key];
  const next = step && cells[cells.indexOf(cell) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
}
