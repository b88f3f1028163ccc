// A conversation as a tree of turns. Each turn has versions: its siblings. Knows no server and no DOM.

const SAVED = [
  "id",
  "parent",
  "role",
  "text",
  "tokens",
  "contextIds",
  "finish",
  "numTokens",
  "seconds",
  "forkedAt",
];

export class Tree {
  /** `saved`: what toJSON() gave. */
  constructor(saved) {
    this.turns = new Map();
    this.roots = [];
    this.chosen = new Map(); // parent's id, or null → the child that is shown
    for (const turn of saved?.turns ?? []) this.#insert({ ...blank(), ...turn });
    for (const id of saved?.path ?? []) this.choose(this.turns.get(id));
  }

  /** A new turn after `parent` (null: at the beginning), which is shown from now on. */
  add(parent, role, fields = {}) {
    const turn = { ...blank(), id: newId(), parent: parent?.id ?? null, role, ...fields };
    this.#insert(turn);
    this.choose(turn);
    return turn;
  }

  /** The turns that are shown, first to last. */
  path() {
    const turns = [];
    for (let id = this.chosen.get(null); id; id = this.chosen.get(id))
      turns.push(this.turns.get(id));
    return turns;
  }

  /** The turns before one, first to last. */
  before(turn) {
    const turns = [];
    for (let one = this.parentOf(turn); one; one = this.parentOf(one)) turns.unshift(one);
    return turns;
  }

  parentOf(turn) {
    return this.turns.get(turn.parent) ?? null;
  }

  /** All versions of a turn, oldest first. */
  versions(turn) {
    return this.#siblings(turn.parent).map((id) => this.turns.get(id));
  }

  /** Shows a turn, and of what follows it what was shown last. */
  choose(turn) {
    for (let one = turn; one; one = this.parentOf(one)) this.chosen.set(one.parent, one.id);
  }

  /** Takes in the turns of another tree, as toJSON() gave them, and shows what that showed. Where there is
   *  something already, they are another version of it. */
  graft({ turns, path }) {
    const ids = new Map(turns.map(({ id }) => [id, newId()]));
    for (const turn of turns) {
      const place = { id: ids.get(turn.id), parent: ids.get(turn.parent) ?? null };
      this.#insert({ ...blank(), ...pick(turn, ...SAVED), ...place });
    }
    for (const id of path) this.choose(this.turns.get(ids.get(id)));
  }

  get isEmpty() {
    return this.turns.size === 0;
  }

  toJSON() {
    const turns = [...this.turns.values()].map((turn) => pick(turn, ...SAVED));
    return { turns, path: this.path().map((turn) => turn.id) };
  }

  #insert(turn) {
    turn.children = [];
    this.turns.set(turn.id, turn);
    this.#siblings(turn.parent).push(turn.id);
  }

  #siblings(parent) {
    return parent === null ? this.roots : this.turns.get(parent).children;
  }
}

/** What a turn has. `tokens`: {piece, text, id, logprob, top: [{text, logprob}]}; `contextIds`: the ids of all that
 *  comes before its first token, where they are known; `forkedAt`: the place of a token that a person chose. */
function blank() {
  return {
    text: "",
    tokens: [],
    contextIds: null,
    finish: null, // stop, length, or aborted by a person
    numTokens: 0, // generated for it, kept ones of another version aside
    seconds: null, // {first, all}
    forkedAt: null,
    state: "done", // or waiting, running
    prompt: null, // while it waits: {total, request}, its tokens and the name of what asked for them
    error: null,
    version: 0, // counts changes, for what is drawn
  };
}

/** A new name, for a turn or a request. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}

export function pick(from, ...names) {
  return Object.fromEntries(names.map((name) => [name, from[name]]));
}
