// Elements without markup in strings: text is only ever text.

const SVG = "http://www.w3.org/2000/svg";

/** h("p", {class: "note", onclick: f}, "text", child, ...) */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function s(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** Sets text only where it differs, so that screen readers and selections are left in peace. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

/** One child for each item, made once and updated from then on, so that focus stays where it is. */
export class Keyed {
  #parts = new Map();

  /** make(item) returns {element, update(item)}. */
  constructor(parent, keyOf, make) {
    Object.assign(this, { parent, keyOf, make });
  }

  update(items) {
    const left = new Set(this.#parts.keys());
    let before = this.parent.firstChild;
    for (const item of items) {
      const key = this.keyOf(item);
      left.delete(key);
      let part = this.#parts.get(key);
      if (!part) this.#parts.set(key, (part = this.make(item)));
      part.update(item);
      if (part.element === before) before = before.nextSibling;
      else this.parent.insertBefore(part.element, before);
    }
    for (const key of left) {
      const { element } = this.#parts.get(key);
      if (element.contains(document.activeElement)) document.getElementById("main").focus({ preventScroll: true });
      element.remove();
      this.#parts.delete(key);
    }
  }
}
