// The load in four figures, and the speed of the last two minutes as a line.

import { h, s, say } from "./dom.js";
import { HISTORY_S } from "./store.js";
import { count, rate, span } from "./words.js";

const [WIDTH, HEIGHT] = [480, 64];

export function figuresView(section) {
  const speed = figure("Tokens a second");
  const line = s("path", { class: "spark-line" });
  const area = s("path", { class: "spark-area" });
  const spark = s(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
    area,
    line,
  );
  speed.element.append(spark);
  speed.element.classList.add("wide");
  const first = figure("Time to first token");
  const queue = figure("In the queue");
  const running = figure("Running");
  section.replaceChildren(...[speed, first, running, queue].map((each) => each.element));
  return (state) => {
    const { picture, live, history } = state;
    const known = live ? picture : null;
    const spread = known?.time_to_first_token_s;
    const prompt = known?.tokens_per_s.prompt;
    const highest = Math.max(0, ...history.map((entry) => entry.rate ?? 0));
    const peak = Math.max(1, highest);
    const note = (words) => (known ? words() : ""); // nothing is said of what is not known
    speed.set(rate(known?.tokens_per_s.generated), `prompts ${rate(prompt)}, peak ${rate(highest)} in 2 min`);
    first.set(span(spread?.p50), note(() => (spread.requests ? `95 % within ${span(spread.p95)}` : "no request yet")));
    running.set(known ? String(known.queue.running) : "–", note(() => groups(known.scheduling)));
    queue.set(known ? String(known.queue.waiting) : "–", note(() => (known.queue.waiting ? "waiting for a place" : "nobody waits")));
    spark.setAttribute("aria-label", `Tokens a second in the last two minutes, at most ${rate(highest)}.`);
    const d = paths(history, peak);
    line.setAttribute("d", d.line);
    area.setAttribute("d", d.area);
  };
}

function groups(scheduling) {
  const members = scheduling?.micro_batches.members ?? [];
  return members.length ? `in ${count(members.length, "micro-batch", "micro-batches")}` : "nothing to do";
}

/** Gaps where nothing was heard, as in a failover. */
function paths(history, peak) {
  const now = performance.now() / 1000;
  let [line, area, run] = ["", "", []];
  const end = () => {
    if (run.length > 1) {
      line += `M${run.join("L")}`;
      area += `M${run[0].split(" ")[0]} ${HEIGHT}L${run.join("L")}L${run.at(-1).split(" ")[0]} ${HEIGHT}Z`;
    }
    run = [];
  };
  for (const { at, rate: value } of history) {
    if (value === null) end();
    else {
      const x = WIDTH * (1 - (now - at) / HISTORY_S);
      run.push(`${x.toFixed(1)} ${(HEIGHT - 2 - (HEIGHT - 6) * (value / peak)).toFixed(1)}`);
    }
  }
  end();
  return { line, area };
}

function figure(title) {
  const value = h("p", { class: "figure-value" }, "–");
  const note = h("p", { class: "figure-note" });
  const element = h("div", { class: "figure" }, h("h2", { class: "figure-title" }, title), value, note);
  return {
    element,
    set(text, more) {
      say(value, text);
      say(note, more);
    },
  };
}
