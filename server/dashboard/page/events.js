// Alerts as they are, failovers as they were.

import { h, say, show } from "./dom.js";
import { clock, count, span } from "./words.js";

const PHASES = [
  ["stop_s", "stop"],
  ["wait_s", "wait"],
  ["launch_s", "launch"],
  ["load_s", "load"],
];

const SHOWN = 6;

export function eventsView(place) {
  const alerts = h("ul", { class: "alerts" });
  const calm = h("p", { class: "quiet" }, "No alerts.");
  const failovers = h("ol", { class: "failovers", reversed: true });
  const none = h("p", { class: "quiet" });
  const more = h("p", { class: "quiet", hidden: true });
  place.replaceChildren(calm, alerts, none, failovers, more);
  let drawn = "";
  return ({ picture, status, live, about }) => {
    const found = live ? picture.alerts : [];
    show(calm, !found.length);
    show(alerts, Boolean(found.length));
    const entries = status?.recoveries ?? [];
    show(none, !entries.length);
    say(none, about.launcher ? "No failover so far." : "Failovers are the launcher's, and this server runs without it.");
    const shape = JSON.stringify([found.map((alert) => alert.message), entries.map((entry) => entry.epoch)]);
    if (shape === drawn) return;
    drawn = shape;
    alerts.replaceChildren(...found.map((alert) => h("li", {}, alert.message)));
    failovers.replaceChildren(...entries.slice(-SHOWN).toReversed().map(failover));
    const earlier = (status?.recoveries_total ?? 0) - Math.min(SHOWN, entries.length);
    show(more, earlier > 0);
    say(more, `And ${count(earlier, "earlier one")}.`);
  };
}

function failover(entry) {
  const total = entry.total_s || 1;
  const bar = h("span", { class: "phases", "aria-hidden": "true" });
  for (const [name, word] of PHASES) {
    const part = h("span", { class: `phase-${word}` });
    part.style.width = `${(100 * entry[name]) / total}%`;
    bar.append(part);
  }
  const parts = PHASES.map(([name, word]) => `${word} ${span(entry[name])}`).join(", ");
  return h(
    "li",
    {},
    h("p", { class: "failover-what" }, h("time", {}, clock(entry.noticed_at)), ` ${entry.reason}`),
    h("p", { class: "quiet" }, `${entry.leader} leads ${count(entry.nodes, "node")}, epoch ${entry.epoch}, after ${span(entry.total_s)}: ${parts}`),
    bar,
  );
}
