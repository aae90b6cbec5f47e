// Follows the decision stream and renews the page's own parts. Without it the page is a plain page.
"use strict";
(() => {
  if (!window.EventSource) return;
  const clock = document.getElementById("live");
  let busy = false, last = 0, waiting = 0;

  const renew = async () => {
    waiting = 0;
    // Nothing moves under the pointer or the keyboard of somebody who is about to decide.
    if (busy || document.hidden || String(window.getSelection()) || document.querySelector("form:hover, form :focus")) return;
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const open = [...document.querySelectorAll("details[open]")].map((d) => d.id);
      for (const tag of ["header", "main", "footer"]) {
        const now = document.querySelector(tag), next = fresh.querySelector(tag);
        if (now && next && now.innerHTML !== next.innerHTML) now.innerHTML = next.innerHTML;
      }
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      last = Date.now();
    } catch {
      document.getElementById("live").textContent = "connection lost, retrying";
    } finally {
      busy = false;
    }
  };

  const soon = () => {
    if (!waiting) waiting = setTimeout(renew, Math.max(200, 3000 - (Date.now() - last)));
  };

  const stream = new EventSource("/api/v1/stream");
  stream.addEventListener("decision", soon);
  stream.addEventListener("tick", soon);
  stream.addEventListener("error", () => { if (clock) document.getElementById("live").textContent = "connection lost, retrying"; });
  document.addEventListener("visibilitychange", soon);
})();
