// All that runs in the browser. Without it every page works; with it pages renew themselves, and buttons copy.

// ---- live: fetch this page again and put its live regions in place of the old ones --------------------------------

const regions = () => document.querySelectorAll("[data-live]");
const LIVE_MS = Number(document.querySelector("[data-live]")?.dataset.live ?? 0) * 1000;
const BACKOFF_MAX_MS = 60_000;
// Regions as the server sent them: what the browser does to one (an open part, a button shown) is no change of it.
const sent = new WeakMap();

function isInUse(region) {
  const selected = document.getSelection();
  const active = document.activeElement;
  return (region.contains(active) && !active.matches("[data-copy]")) // a button that has copied is done with
    || (selected && !selected.isCollapsed && region.contains(selected.anchorNode));
}

function keepOpen(from, to) {
  for (const details of from.querySelectorAll("details[id][open]")) {
    to.querySelector(`#${CSS.escape(details.id)}`)?.setAttribute("open", "");
  }
}

const boxes = (region) => [...region.querySelectorAll(".plot, .scroll, .code")];

function swap(region, next) {
  sent.set(next, next.innerHTML);
  const copied = region.contains(document.activeElement) && document.activeElement.dataset.copy;
  const places = boxes(region).map((box) => [box.scrollLeft, box.scrollTop]);
  keepOpen(region, next);
  region.replaceWith(next);
  boxes(next).forEach((box, at) => { [box.scrollLeft, box.scrollTop] = places[at] ?? [0, 0]; });
  prepare(next);
  if (copied) next.querySelector(`[data-copy="${copied}"]`)?.focus({ preventScroll: true });
}

async function renew() {
  const url = new URL(location.href);
  url.searchParams.delete("did");
  const answer = await fetch(url, { headers: { accept: "text/html" }, redirect: "error" });
  if (!answer.ok) throw new Error(String(answer.status));
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const region of regions()) {
    const next = fresh.getElementById(region.id);
    if (next && !isInUse(region) && next.innerHTML !== sent.get(region)) swap(region, next);
  }
}

// Figures that stand still look like figures that are well: say so.
function stale(reason) {
  const told = document.getElementById("stale");
  told.hidden = !reason;
  if (told.textContent !== reason) told.textContent = reason;
}

async function live() {
  let wait = LIVE_MS;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, wait));
    if (document.hidden) continue;
    if (regions().length === 0) return;
    try {
      await renew();
      wait = LIVE_MS;
      stale("");
    } catch {
      wait = Math.min(wait * 2, BACKOFF_MAX_MS); // the server is away, or the session is over: no hurry
      stale("This page is not up to date: the server does not answer it. It is asked again; a reload tells why.");
    }
  }
}

// ---- buttons ------------------------------------------------------------------------------------------------------

async function copy(button) {
  const source = document.querySelector(button.dataset.copy);
  const text = source.dataset.text ?? source.value ?? source.textContent;
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch { // plain http from another machine: browsers keep the clipboard for themselves
    document.getSelection().selectAllChildren(source);
    button.textContent = "Selected: press Ctrl-C";
  }
  setTimeout(() => { button.textContent = before; }, 2000);
}

function prepare(root) {
  for (const button of root.querySelectorAll("[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }
  for (const button of root.querySelectorAll("[data-confirm]")) {
    button.addEventListener("click", (event) => {
      if (!confirm(button.dataset.confirm)) event.preventDefault();
    });
  }
  for (const box of root.querySelectorAll("[data-all]")) {
    box.closest("label").hidden = false;
    box.addEventListener("change", () => {
      for (const one of document.getElementsByName(box.dataset.all)) one.checked = box.checked;
    });
  }
}

// A form that is too large is not sent: a server that refuses it while it arrives cuts the connection, and no browser shows
// what it said.
document.addEventListener("submit", (event) => {
  const most = Number(event.target.dataset.bytesMax ?? Infinity);
  const bytes = new URLSearchParams(new FormData(event.target)).toString().length;
  if (bytes <= most) return;
  event.preventDefault();
  const longest = [...event.target.elements].reduce((a, b) => ((b.value ?? "").length > (a.value ?? "").length ? b : a));
  const told = (size) => `${(size / 2 ** 20).toFixed(1)} MiB`;
  longest.setCustomValidity(`Too large: the form has ${told(bytes)}, and may have ${told(most)}. In a shell, hookpost verify takes it.`);
  longest.reportValidity();
  longest.addEventListener("input", () => longest.setCustomValidity(""), { once: true });
});

// Times are told in UTC; resting on one tells it by the reader's own clock, too.
document.addEventListener("pointerover", ({ target }) => {
  const time = target.closest?.("time");
  if (time && !time.title.includes("\n")) time.title += `\n${new Date(time.dateTime)}`;
});

// "/" goes to the search box, as on most consoles.
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const box = document.querySelector('.find input[type="search"]');
  if (box) {
    event.preventDefault();
    box.focus();
    box.select();
  }
});

// On a phone the sections are moved sideways: the one that is open must not be out of sight.
document.querySelector(".sections [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
for (const plot of document.querySelectorAll("[data-now]")) plot.scrollLeft = plot.scrollWidth; // now is on the right
for (const region of regions()) sent.set(region, region.innerHTML);
prepare(document);
if (LIVE_MS) live();
