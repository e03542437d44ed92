// What whoever looks may do.  The server decides; the page only hides what it would refuse.

import { ROLES } from "./api.js";

export function may(state, role) {
  return state.me !== null && ROLES.indexOf(state.me.role) >= ROLES.indexOf(role);
}
