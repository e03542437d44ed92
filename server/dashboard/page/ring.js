// The ring: an arc for each node, as long as its share of the layers.

import { s, say } from "./dom.js";
import { hueOf, nodesOf } from "./nodes.js";
import { rate } from "./words.js";

const RADIUS = 104;
const GAP = 0.05; // radians between two arcs
const TURN = 2 * Math.PI;
const LONGEST = 9; // letters of a name that fit beside the ring

export function ringView(figure) {
  const arcs = s("g");
  const flow = s("circle", { r: 84, class: "flow" });
  const number = s("text", { class: "ring-number", y: 4, "text-anchor": "middle" }, "–");
  const unit = s("text", { class: "ring-unit", y: 26, "text-anchor": "middle" }, "tokens/s");
  const svg = s("svg", { viewBox: "-210 -150 420 300", role: "img" }, arcs, flow, number, unit);
  figure.replaceChildren(svg);
  let drawn = "";
  return (state) => {
    const nodes = nodesOf(state).filter((node) => !node.out);
    const speed = state.live ? state.picture.tokens_per_s.generated : null;
    say(number, state.live ? rate(speed) : "…");
    say(unit, state.live ? "tokens/s" : (state.status?.state ?? "waiting"));
    svg.setAttribute("aria-label", spoken(nodes));
    flow.classList.toggle("moving", state.live && state.picture.queue.running > 0);
    const shape = JSON.stringify(nodes.map((n) => [n.name, n.rank, n.layers, n.leads, n.state]));
    if (shape !== drawn) arcs.replaceChildren(...arcsOf(nodes, state));
    drawn = shape;
  };
}

function spoken(nodes) {
  const parts = nodes.map((node) => {
    const layers = node.layers ? `, layers ${node.layers.first} to ${node.layers.last}` : "";
    return `${node.name}${node.leads ? ", which leads" : ""}${layers}, ${node.state}`;
  });
  return `The ring: ${parts.join("; ") || "nothing is known of it yet"}.`;
}

function arcsOf(nodes, state) {
  const known = nodes.every((node) => node.layers);
  const weights = nodes.map((node) => (known ? node.layers.count : 1));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let from = -TURN / 4;
  return nodes.flatMap((node, index) => {
    const share = (TURN * weights[index]) / total;
    const [start, end] = [from + GAP / 2, from + share - GAP / 2];
    from += share;
    const middle = (start + end) / 2;
    return [
      s("path", {
        d: arc(start, nodes.length === 1 ? start + TURN - 0.001 : Math.max(end, start + 0.01)),
        class: `arc hue-${hueOf(node.name, state)} is-${node.state}`,
      }),
      label(node, middle),
    ];
  });
}

function arc(start, end) {
  const [x1, y1] = at(start, RADIUS);
  const [x2, y2] = at(end, RADIUS);
  return `M ${x1} ${y1} A ${RADIUS} ${RADIUS} 0 ${end - start > Math.PI ? 1 : 0} 1 ${x2} ${y2}`;
}

function at(angle, radius) {
  return [radius * Math.cos(angle), radius * Math.sin(angle)].map((value) => value.toFixed(2));
}

/** Names of a kind differ at their ends. */
function short(name) {
  const bare = name.replace(/\.local$/, "");
  return bare.length > LONGEST ? `${bare.slice(0, 3)}…${bare.slice(3 - LONGEST + 1)}` : bare;
}

function label(node, angle) {
  const [x, y] = at(angle, RADIUS + 20);
  const sideways = Math.abs(Math.cos(angle)) > 0.25;
  const anchor = sideways ? (Math.cos(angle) > 0 ? "start" : "end") : "middle";
  const drop = Math.abs(Math.sin(angle)) > 0.9 ? (Math.sin(angle) > 0 ? 8 : -12) : -2;
  const layers = node.layers ? `${node.layers.first}–${node.layers.last}` : node.state;
  return s(
    "g",
    { transform: `translate(${x} ${Number(y) + drop})`, "text-anchor": anchor },
    s("title", {}, node.name),
    s("text", { class: "ring-name" }, node.leads ? `★ ${short(node.name)}` : short(node.name)),
    s("text", { class: "ring-layers", y: 15 }, layers),
  );
}
