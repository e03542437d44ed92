// The nodes as the launcher and rank 0 know them, put together.

/** One entry for each node, in the order of the ring; those that take no part come last. */
export function nodesOf({ picture, status, live }) {
  const seen = new Map((picture?.nodes ?? []).map((node) => [node.node, node]));
  if (!status) return [...seen.values()].map((node) => entry(node.node, node, null, live, picture));
  const away = Number.MAX_SAFE_INTEGER;
  const order = [...status.nodes].sort((a, b) => (a.rank ?? away) - (b.rank ?? away));
  // After a failover the last picture is of the ring before.
  const current = live && status.state === "serving";
  return order.map((known) => entry(known.name, seen.get(known.name), known, current, picture, status));
}

function entry(name, node, known, current, picture, status) {
  const now = current ? node : null;
  return {
    name,
    rank: known ? known.rank : node.rank,
    host: known?.host ?? node?.host,
    leads: status ? status.leader === name : Boolean(node?.leader),
    layers: now?.layers ?? layersOf(known),
    numLayers: node?.num_layers ?? picture?.nodes[0]?.num_layers,
    state: now?.state ?? known?.state ?? "unknown",
    note: noteOf(known) || now?.reason || "",
    beat: now?.heartbeat_age_s ?? known?.heartbeat_age_s ?? null,
    load: now?.load ?? null,
    progress: now?.load_progress ?? null,
    gpu: now?.gpu_memory ?? null,
    weights: now?.parameter_bytes ?? null,
    machine: now?.resources ?? null,
    failures: known?.failures ?? 0,
    out: known ? known.rank === null : false,
  };
}

function layersOf(known) {
  if (!known?.layers) return null;
  const [first, last] = known.layers;
  return { first, last, count: last - first + 1 };
}

function noteOf(known) {
  if (!known) return "";
  if (!known.reachable) return known.why ? `can't be reached: ${known.why}` : "can't be reached";
  if (known.refused) return `left out: ${known.refused}`;
  if (known.held_for_s !== null) return `kept out for ${Math.ceil(known.held_for_s)} s`;
  return "";
}

/** A node keeps its colour, whatever its rank. */
export function hueOf(name, state) {
  const names = (state.status?.nodes.map((node) => node.name) ?? state.picture?.nodes.map((n) => n.node) ?? []).sort();
  return Math.max(0, names.indexOf(name)) % 6;
}
