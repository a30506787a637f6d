// All that runs in the browser. Without it every page works; with it pages renew themselves, and buttons copy.

// ---- live: fetch this page again and put its live regions in place of the old ones --------------------------------

const regions = () => document.querySelectorAll("[data-live]");
const LIVE_MS = Number(document.querySelector("[data-live]")?.dataset.live ?? 0) * 1000;
const BACKOFF_MAX_MS = 60_000;

function isInUse(region) {
  const selected = document.getSelection();
  return region.contains(document.activeElement)
    || (selected && !selected.isCollapsed && region.contains(selected.anchorNode));
}

function keepOpen(from, to) {
  for (const details of from.querySelectorAll("details[id][open]")) {
    to.querySelector(`#${CSS.escape(details.id)}`)?.setAttribute("open", "");
  }
}

async function renew() {
  const url = new URL(location.href);
  url.searchParams.delete("did");
  const answer = await fetch(url, { headers: { accept: "text/html" }, redirect: "error" });
  if (!answer.ok) throw new Error(String(answer.status));
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const region of regions()) {
    const next = fresh.getElementById(region.id);
    if (next && !isInUse(region) && next.innerHTML !== region.innerHTML) {
      keepOpen(region, next);
      region.replaceWith(next);
      prepare(next);
    }
  }
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
    } catch {
      wait = Math.min(wait * 2, BACKOFF_MAX_MS); // the server is away, or the session is over: no hurry
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
  for (const plot of root.querySelectorAll(".plot")) plot.scrollLeft = plot.scrollWidth; // now is on the right
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
  for (const field of root.querySelectorAll("select[data-submit]")) {
    field.addEventListener("change", () => field.form.requestSubmit());
  }
}

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

prepare(document);
if (LIVE_MS) live();
