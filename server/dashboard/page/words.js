// Numbers and states as people read them.

export const NONE = "–";

export function bytes(count) {
  if (count == null) return NONE;
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 999.5 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${count.toFixed(count < 10 && unit > 0 ? 1 : 0)} ${units[unit]}`;
}

/** Seconds of a span of time. */
export function span(seconds) {
  if (seconds == null) return NONE;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export function rate(value) {
  if (value == null) return NONE;
  return value && value < 9.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

export function percent(share) {
  return share == null ? NONE : `${Math.round(100 * share)} %`;
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

export function clock(seconds) {
  return new Date(1000 * seconds).toLocaleTimeString([], { hour12: false });
}

function sentence(text) {
  const trimmed = String(text).trim();
  if (!trimmed) return "";
  const name = trimmed.split(" ", 1)[0].includes("_"); // of a setting or a figure
  return (name ? trimmed[0] : trimmed[0].toUpperCase()) + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

/** A state and its reason, which may have the word in it. */
function told({ state, reason }) {
  if (!reason || reason.includes(state)) return sentence(reason || state);
  return sentence(`${state}: ${reason}`);
}

/** What is going on, in a sentence or two, and how grave it is: good, note, bad. */
export function story(state) {
  const { picture, status, locked, reachable, live, why } = state;
  if (locked) return { tone: "note", text: "A key is needed to look inside." };
  if (!reachable) return { tone: "bad", text: "The server does not answer. Trying again." };
  if (status && status.state !== "serving") {
    const first = status.state === "starting" && status.epoch <= 1; // nothing has broken
    return { tone: first ? "note" : "bad", text: told(status) };
  }
  if (!picture) return { tone: "note", text: "Connecting." };
  if (!live) return { tone: "bad", text: `${sentence(why || "The connection to rank 0 was lost")} Trying again.` };
  if (picture.status === "starting" || picture.status === "failing") {
    return { tone: "bad", text: told({ state: picture.status, reason: picture.reason }) };
  }
  const parts = [
    `${status?.draining ? "Draining" : "Serving"} ${picture.model} on ${count(picture.size, "node")}`,
    `${picture.leader.node} leads`,
    `epoch ${status?.epoch ?? picture.epoch}`,
    `up ${span(status?.uptime_s ?? picture.uptime_s)}`,
  ];
  const note = picture.status === "degraded" ? ` ${sentence(picture.reason)}` : "";
  return { tone: note || status?.draining ? "note" : "good", text: `${parts.join(", ")}.${note}` };
}
