"use strict";
// Everything on the page works without this; it keeps the numbers fresh and asks before what cannot be taken back.
(() => {
  const live = document.getElementById("live");
  const down = document.getElementById("down");

  for (const button of document.querySelectorAll("[data-confirm]")) {
    button.addEventListener("click", (event) => {
      if (!window.confirm(button.dataset.confirm)) event.preventDefault();
    });
  }

  const retry = document.querySelector("[data-retry]");
  if (retry) setTimeout(() => location.reload(), 1000 * Number(retry.dataset.retry));

  const mark = (section) => {
    for (const name of ["dead", "errors"]) {
      const cell = section.querySelector(`[data-cell="${name}"]`);
      if (cell) cell.parentElement.classList.toggle("some", !["0", "0 %", "\u2013"].includes(cell.textContent));
    }
  };
  const sections = new Map([...document.querySelectorAll("[data-queue]")].map((one) => [one.dataset.queue, one]));
  sections.forEach(mark);
  if (!sections.size && !document.getElementById("alerts")) return;

  const put = (element, text) => {
    if (element && element.textContent !== text) element.textContent = text;
  };
  const show = (section, cells) => {
    for (const cell of section.querySelectorAll("[data-cell]")) put(cell, cells[cell.dataset.cell]);
    for (const path of section.querySelectorAll("[data-plot]")) path.setAttribute("d", cells[path.dataset.plot]);
    const state = section.querySelector("[data-state]");
    if (state) state.hidden = !cells.state;
    mark(section);
  };
  const say = (on, text) => {
    live.hidden = false;
    live.classList.toggle("off", !on);
    put(live, text);
  };
  const tell = (line) => {
    down.hidden = !line;
    put(down, line);
  };

  let source = null;
  const onState = (event) => {
    const found = JSON.parse(event.data);
    const all = document.querySelector(".cards");
    // A queue that came or went changes the page itself.
    if (all && Object.keys(found.queues).sort().join() !== [...sections.keys()].sort().join()) return location.reload();
    sections.forEach((section, queue) => found.queues[queue] && show(section, found.queues[queue]));
    const list = document.getElementById("alerts");
    if (list) {
      list.hidden = !found.alerts.length;
      list.replaceChildren(...found.alerts.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
    }
    put(document.getElementById("at"), found.at);
    say(true, "live");
    tell("");
  };
  const start = () => {
    if (source) return;
    source = new EventSource(document.body.dataset.events);
    source.addEventListener("state", onState);
    source.addEventListener("down", (event) => {
      say(false, "waiting");
      tell(`${JSON.parse(event.data).line}; the numbers are those of before`);
    });
    source.addEventListener("error", () => {
      say(false, "waiting");
      tell("The server cannot be reached; the numbers are those of before");
      // The browser connects again by itself, unless the answer was a refusal.
      if (source && source.readyState === EventSource.CLOSED) { stop(); setTimeout(start, 3000); }
    });
  };
  const stop = () => {
    if (source) source.close();
    source = null;
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
  addEventListener("pagehide", stop);
  if (!document.hidden) start();
})();
