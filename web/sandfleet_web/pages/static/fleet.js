// Reads the page again every few seconds and swaps the parts that changed. Stops in a hidden tab.
(() => {
  "use strict";
  const CHOICES = [1, 2, 5, 15, 0];
  const KEY = "sandfleet-refresh";
  const usual = Number(document.body.dataset.refresh) || 0;
  let seconds = usual;
  let timer = 0;
  let isReading = false;

  const say = (text) => {
    const place = document.getElementById("said");
    if (place && place.textContent !== text) place.textContent = text;
  };

  // What has the focus is found again by its address or its name, inside the part that is swapped.
  const findAgain = (part, old) => {
    if (!old) return null;
    const same = (one) => one.tagName === old.tagName && one.getAttribute("href") === old.getAttribute("href")
      && one.getAttribute("aria-label") === old.getAttribute("aria-label");
    return [...part.querySelectorAll("a, button, [tabindex]")].find(same) || null;
  };

  const swap = (fresh) => {
    for (const part of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(part.id);
      if (!next || next.innerHTML === part.innerHTML) continue;
      const focused = part.contains(document.activeElement) ? document.activeElement : null;
      const scrolled = [...part.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
      part.replaceChildren(...next.childNodes);
      part.querySelectorAll(".scroll").forEach((one, index) => { one.scrollLeft = scrolled[index] || 0; });
      const again = findAgain(part, focused);
      if (again) again.focus({ preventScroll: true });
    }
    mark();
  };

  // A table that is wider than its place can be moved with the keyboard, too.
  const mark = () => {
    for (const one of document.querySelectorAll(".scroll")) {
      if (one.scrollWidth > one.clientWidth) {
        one.tabIndex = 0;
        one.setAttribute("role", "region");
        const title = one.closest("section")?.querySelector("h2") || document.querySelector("h1");
        one.setAttribute("aria-label", `${title ? title.textContent.trim() : "Table"}, scrolls sideways`);
      } else {
        one.removeAttribute("tabindex");
        one.removeAttribute("role");
        one.removeAttribute("aria-label");
      }
    }
  };

  const read = async () => {
    if (isReading || document.hidden) return;
    isReading = true;
    try {
      const answer = await fetch(location.href, { cache: "no-store", credentials: "same-origin" });
      const text = await answer.text();
      swap(new DOMParser().parseFromString(text, "text/html"));
      document.body.classList.remove("stale");
      say("");
    } catch {
      document.body.classList.add("stale");
      say("The server does not answer; what you see is old.");
    } finally {
      isReading = false;
    }
  };

  const plan = () => {
    clearInterval(timer);
    timer = seconds && !document.hidden ? setInterval(read, seconds * 1000) : 0;
    document.documentElement.dataset.refreshing = timer ? String(seconds) : "off";
  };

  const choose = () => {
    const place = document.getElementById("refresh");
    const label = document.createElement("label");
    label.textContent = "refresh ";
    const menu = document.createElement("select");
    for (const choice of CHOICES) {
      const option = document.createElement("option");
      option.value = String(choice);
      option.textContent = choice ? `${choice} s` : "off";
      option.selected = choice === seconds;
      menu.append(option);
    }
    menu.addEventListener("change", () => {
      seconds = Number(menu.value);
      try { localStorage.setItem(KEY, menu.value); } catch { /* private windows have none */ }
      plan();
    });
    label.append(menu);
    place.replaceChildren(label);
  };

  try {
    const kept = localStorage.getItem(KEY);
    // A page that never refreshes by itself (an ended job, a form) stays so.
    if (usual && kept !== null && CHOICES.includes(Number(kept))) seconds = Number(kept);
  } catch { /* the usual one */ }
  document.addEventListener("visibilitychange", () => { plan(); read(); });
  window.addEventListener("resize", mark);
  if (usual) choose();
  mark();
  plan();
})();
