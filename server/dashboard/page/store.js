// The one state of the page.  Views are told after each change, at most once a frame.

export class Store {
  #views = [];
  #waiting = [];
  #due = false;

  constructor(state) {
    this.state = state;
  }

  subscribe(view) {
    this.#views.push(view);
    view(this.state);
  }

  set(changes) {
    Object.assign(this.state, changes);
    this.#waiting = this.#waiting.filter(({ wanted, done }) => !(wanted(this.state) && (done(), true)));
    if (this.#due) return;
    this.#due = true;
    setTimeout(() => {
      this.#due = false;
      for (const view of this.#views) view(this.state);
    }, 16);
  }

  /** Resolves as soon as wanted(state). */
  until(wanted) {
    if (wanted(this.state)) return Promise.resolve();
    return new Promise((done) => this.#waiting.push({ wanted, done }));
  }
}

export const HISTORY_S = 120;

export function initialState() {
  return {
    about: { key_needed: false, launcher: false },
    me: null, // {name, role}
    locked: "", // why a key is asked for
    reachable: true,
    live: false, // pictures come in
    why: "", // they do not, if the launcher says so
    visible: !document.hidden,
    picture: null, // of GET /v1/cluster/events
    status: null, // the launcher's, of the same stream; null without one
    models: [],
    history: [], // {at, rate}: of the last HISTORY_S seconds; rate null where nothing was heard
  };
}
