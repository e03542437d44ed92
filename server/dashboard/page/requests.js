// Requests in flight, each with a way to end it.

import { json } from "./api.js";
import { h, Keyed, say, show } from "./dom.js";
import { may } from "./rights.js";
import { span } from "./words.js";

export function requestsView(place, store) {
  const none = h("p", { class: "quiet" }, "None.");
  const said = h("p", { class: "said", role: "status" });
  const body = h("tbody");
  const head = ["Request", "Who", "State", "Prompt", "Output", "Age", ""].map((title) =>
    h("th", { scope: "col" }, title || h("span", { class: "unseen" }, "Action")),
  );
  const table = h("table", {}, h("thead", {}, h("tr", { class: "ends" }, head)), body);
  const scroll = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of the requests" }, table);
  place.replaceChildren(none, scroll, said);

  async function cancel(id) {
    try {
      await json("DELETE", `v1/requests/${encodeURIComponent(id)}`);
      say(said, `Request ${id} was ended.`);
    } catch (error) {
      say(said, error.message);
    }
  }

  const rows = new Keyed(body, (request) => request.id, ({ id }) => {
    const cells = ["who", "", "number", "number", "number"].map((kind) => h("td", { class: kind }));
    const end = h("button", { type: "button", class: "small", "aria-label": `End request ${id}`, onclick: () => cancel(id) }, "End");
    const element = h("tr", { class: "ends" }, h("th", { scope: "row", class: "id", title: id }, id), cells, h("td", {}, end));
    return {
      element,
      update(request) {
        const copies = request.sequences > 1 ? ` × ${request.sequences}` : "";
        say(cells[0], request.principal);
        cells[0].title = request.principal;
        say(cells[1], request.state + copies);
        say(cells[2], String(request.prompt_tokens));
        say(cells[3], `${request.output_tokens} / ${request.max_tokens}`);
        say(cells[4], span(request.age_s));
        show(end, may(store.state, "user"));
      },
    };
  });
  return (state) => {
    const requests = state.live ? state.picture.requests : [];
    show(none, !requests.length);
    show(scroll, Boolean(requests.length));
    rows.update(requests);
  };
}
