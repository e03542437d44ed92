// What the stages did in a few seconds: a lane for each, in which every gap is a bubble.

import { json } from "./api.js";
import { h, say, show } from "./dom.js";
import { hueOf } from "./nodes.js";
import { extent, lanesOf, sharesOf } from "./trace.js";
import { percent, span } from "./words.js";

const LANE = 44;
const AXIS = 22;
const SHORTEST = 0.005; // seconds that fill the width, at least
const FIRST_VIEW = 0.4;

export function timelineView(section, store) {
  const seconds = h(
    "select",
    { id: "seconds" },
    [1, 2, 5, 10].map((each) => h("option", { value: each, selected: each === 2 }, `${each} s`)),
  );
  const record = h("button", { type: "button", onclick: () => start() }, "Record");
  const save = h("a", { class: "button", download: "pipeline.json", hidden: true }, "Save for Perfetto");
  const said = h("p", { class: "quiet", role: "status" }, "Record what the stages do, to see where they wait for each other.");
  const canvas = h("canvas", { tabindex: "0", role: "img", hidden: true });
  const zoom = h("div", { class: "row", hidden: true });
  const under = h("p", { class: "quiet under", "aria-live": "off" });
  const shares = h("div", { class: "scroll" });
  const lanesPlan = new Plan(canvas, under);
  for (const [text, name, act] of [
    ["−", "Show more time", () => lanesPlan.zoom(2)],
    ["+", "Show less time", () => lanesPlan.zoom(0.5)],
    ["←", "Earlier", () => lanesPlan.move(-0.5)],
    ["→", "Later", () => lanesPlan.move(0.5)],
  ]) {
    zoom.append(h("button", { type: "button", class: "small", "aria-label": name, title: name, onclick: act }, text));
  }
  zoom.append(legend());
  section.replaceChildren(
    h(
      "div",
      { class: "title-row" },
      h("h2", { id: "timeline-title" }, "The pipeline"),
      h("div", { class: "row" }, h("label", { for: "seconds" }, "for"), seconds, record, save),
    ),
    said,
    canvas,
    under,
    zoom,
    shares,
  );

  async function start() {
    record.disabled = true;
    say(said, `Recording for ${seconds.value} s.`);
    try {
      const trace = await json("GET", `v1/cluster/timeline?seconds=${seconds.value}`);
      draw(trace);
    } catch (error) {
      say(said, `It could not be recorded: ${error.message}`);
    } finally {
      record.disabled = false;
    }
  }

  function draw(trace) {
    const lanes = lanesOf(trace).map((lane) => ({ ...lane, hue: hueOf(lane.node, store.state) }));
    const bounds = extent(lanes);
    show(canvas, Boolean(bounds));
    show(zoom, Boolean(bounds));
    URL.revokeObjectURL(save.href);
    save.href = URL.createObjectURL(new Blob([JSON.stringify(trace)], { type: "application/json" }));
    show(save, true);
    if (!bounds) {
      say(said, "Nothing was computed in that time. Send a request, then record again.");
      shares.replaceChildren();
      say(under, "");
      return;
    }
    say(said, trace.missing_ranks.length ? `Rank ${trace.missing_ranks.join(", ")} sent nothing.` : "");
    const worked = lanes.map((lane) => sharesOf(lane, ...bounds));
    canvas.setAttribute("aria-label", spoken(lanes, worked));
    shares.replaceChildren(table(lanes, worked, bounds));
    lanesPlan.take(lanes, bounds, trace.seconds);
  }

  new ResizeObserver(() => lanesPlan.draw()).observe(section);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => lanesPlan.draw());
  return (state) => {
    record.disabled = !state.live;
  };
}

function spoken(lanes, worked) {
  const parts = lanes.map((lane, index) => `rank ${lane.name} computes ${percent(worked[index].compute)}`);
  return `Timeline of the stages: ${parts.join(", ")}. Arrow keys move, plus and minus zoom.`;
}

function table(lanes, worked, [from, to]) {
  const titles = ["Stage", "Computes", "Other work", "Bubbles"];
  return h(
    "table",
    { class: "shares" },
    h("caption", { class: "quiet" }, `Shares of the ${span(to - from)} in which there was work.`),
    h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, title)))),
    h(
      "tbody",
      {},
      lanes.map((lane, index) => {
        const { compute, other, bubble } = worked[index];
        const cells = [compute, other, bubble].map((share) => h("td", { class: "number" }, percent(share)));
        return h("tr", {}, h("th", { scope: "row" }, lane.name), cells);
      }),
    ),
  );
}

function legend() {
  const kinds = [["compute", "computes"], ["other", "schedules, builds, sends"], ["bubble", "waits: a bubble"]];
  return h("p", { class: "legend" }, kinds.map(([kind, word]) => h("span", { class: `key key-${kind}` }, word)));
}

/** The drawing, and the part of the time that it shows. */
class Plan {
  constructor(canvas, under) {
    Object.assign(this, { canvas, under, lanes: [], from: 0, to: 1, length: 1 });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointermove", (event) => this.#point(event));
    canvas.addEventListener("pointerdown", (event) => this.#grab(event));
  }

  take(lanes, [from, to], length) {
    const middle = (from + to) / 2;
    const half = Math.min(to - from, FIRST_VIEW) / 2 || SHORTEST;
    Object.assign(this, { lanes, length, from: middle - half, to: middle + half });
    this.draw();
  }

  zoom(factor, around = (this.from + this.to) / 2) {
    const width = Math.min(this.length, Math.max(SHORTEST, (this.to - this.from) * factor));
    const left = (around - this.from) / (this.to - this.from);
    this.#look(around - width * left, width);
  }

  move(share) {
    const width = this.to - this.from;
    this.#look(this.from + share * width, width);
  }

  #look(from, width) {
    this.from = Math.max(0, Math.min(from, this.length - width));
    this.to = this.from + width;
    this.draw();
  }

  draw() {
    const { canvas, lanes } = this;
    if (!lanes.length || canvas.hidden) return;
    const [width, height] = [canvas.parentElement.clientWidth, lanes.length * LANE + AXIS];
    const dots = devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * dots);
    canvas.height = Math.round(height * dots);
    const pen = canvas.getContext("2d");
    pen.scale(dots, dots);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const x = (time) => (width * (time - this.from)) / (this.to - this.from);
    pen.font = `12px ${style.fontFamily}`;
    lanes.forEach((lane, index) => {
      const top = index * LANE;
      pen.fillStyle = colour("--ink-2");
      pen.fillText(lane.name, 0, top + 12);
      pen.fillStyle = colour("--bubble");
      pen.fillRect(0, top + 17, width, LANE - 21);
      for (const each of lane.spans) {
        if (each.kind === "wait" || each.to < this.from || each.from > this.to) continue;
        pen.fillStyle = colour(each.kind === "compute" ? `--hue-${lane.hue}` : "--other");
        const tall = each.kind === "compute" ? LANE - 21 : (LANE - 21) / 2;
        pen.fillRect(x(each.from), top + 17 + (LANE - 21 - tall), Math.max(0.6, x(each.to) - x(each.from) - 0.4), tall);
      }
    });
    this.#axis(pen, width, lanes.length * LANE, colour("--ink-2"));
  }

  #axis(pen, width, top, ink) {
    const span = this.to - this.from;
    const rough = span / Math.max(2, width / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
    pen.fillStyle = ink;
    for (let time = Math.ceil(this.from / step) * step; time <= this.to; time += step) {
      const left = (width * (time - this.from)) / span;
      pen.fillRect(left, top, 1, 5);
      const text = step < 0.1 ? `${(1000 * time).toFixed(step < 0.001 ? 1 : 0)} ms` : `${time.toFixed(1)} s`;
      if (left + pen.measureText(text).width < width) pen.fillText(text, left + 4, top + 14);
    }
  }

  #key(event) {
    const acts = {
      ArrowLeft: () => this.move(-0.25),
      ArrowRight: () => this.move(0.25),
      "+": () => this.zoom(0.5),
      "=": () => this.zoom(0.5),
      "-": () => this.zoom(2),
      Home: () => this.#look(0, this.to - this.from),
      End: () => this.#look(this.length, this.to - this.from),
    };
    const act = acts[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  }

  #timeAt(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.from + ((event.clientX - box.left) / box.width) * (this.to - this.from);
  }

  /** With Ctrl, or two fingers: the page scrolls by itself otherwise. */
  #wheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.#timeAt(event));
  }

  #grab(event) {
    const [time, width] = [this.#timeAt(event), this.to - this.from];
    const drag = (moved) => this.#look(this.from + time - this.#timeAt(moved), width);
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.addEventListener("pointermove", drag);
    this.canvas.addEventListener("pointerup", () => this.canvas.removeEventListener("pointermove", drag), { once: true });
  }

  #point(event) {
    const time = this.#timeAt(event);
    const box = this.canvas.getBoundingClientRect();
    const lane = this.lanes[Math.floor((event.clientY - box.top) / LANE)];
    const found = lane?.spans.filter((each) => each.from <= time && time <= each.to);
    if (!found) return;
    const each = found.find((one) => one.kind !== "wait") ?? found[0];
    const what = each ? `${each.kind}, step ${each.step}, ${span(each.to - each.from)}` : "a bubble";
    say(this.under, `${lane.name} at ${(1000 * time).toFixed(1)} ms: ${what}`);
  }
}
