// A recorded timeline in numbers: what each stage did, and how long it waited.

export const KINDS = ["choose", "build", "wait", "compute", "send", "absorb"];

/** Lanes of a Chrome trace; all times in seconds from the start of the recording. */
export function lanesOf(trace) {
  const start = 1e6 * trace.start_s;
  const lanes = new Map();
  for (const event of trace.traceEvents) {
    if (event.ph === "M" && event.name === "process_name") {
      const node = event.args.name.replace(/^\d+ /, "");
      lanes.set(event.pid, { rank: event.pid, name: event.args.name, node, spans: [] });
    } else if (event.ph === "X") {
      const from = (event.ts - start) / 1e6;
      lanes.get(event.pid).spans.push({
        kind: event.name,
        step: event.args.step,
        from: Math.max(0, from),
        to: Math.min(trace.seconds, from + event.dur / 1e6),
      });
    }
  }
  return [...lanes.values()].sort((a, b) => a.rank - b.rank);
}

/** The share of `seconds` for which a lane computes, waits for another stage, and has nothing at all. */
export function sharesOf(lane, from, to) {
  const within = (kinds) => covered(lane.spans.filter((span) => kinds.includes(span.kind)), from, to);
  const whole = to - from;
  const compute = within(["compute"]) / whole;
  const other = within(KINDS.filter((kind) => kind !== "wait")) / whole - compute;
  return { compute, other, bubble: Math.max(0, 1 - compute - other) };
}

function covered(spans, from, to) {
  let [sum, reached] = [0, from];
  for (const span of [...spans].sort((a, b) => a.from - b.from)) {
    const [begin, end] = [Math.max(span.from, reached), Math.min(span.to, to)];
    if (end > begin) {
      sum += end - begin;
      reached = end;
    }
  }
  return sum;
}

/** From the first span to the last one: a recording of an idle cluster is empty. */
export function extent(lanes) {
  const spans = lanes.flatMap((lane) => lane.spans.filter((span) => span.kind !== "wait"));
  if (!spans.length) return null;
  return spans.reduce(([from, to], span) => [Math.min(from, span.from), Math.max(to, span.to)], [Infinity, 0]);
}
