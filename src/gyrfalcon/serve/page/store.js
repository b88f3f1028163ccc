// What the page knows, and everything that a person can do. Components draw it and call these actions.

import { generate, tokenId } from "./generate.js";
import { readExport } from "./import.js";
import { controlsOf, valuesOf } from "./options.js";
import { apiKey, ask, ServerError } from "./server.js";
import { offsets } from "./tokens.js";
import { pick, Tree } from "./tree.js";

const SAVED = "gyrfalcon.page";
const LOADING_SECONDS = 1;

export class Store {
  phase = "connecting"; // loading, key, failed, ready
  problem = null; // why not ready
  model = null; // {name, maxLen, canChat, endText}
  mode = null; // chat or text
  trees = { chat: new Tree(), text: new Tree() };
  controls = { chat: [], text: [] };
  typed = { chat: {}, text: {} }; // values of controls, as they were typed
  system = "";
  wantsTokens = true;
  shades = false; // tokens by their probability
  settingsAreOpen = false;
  editing = null; // id of a turn
  running = null; // {turn, controller}
  notice = null; // {title, message} of what a person asked for and cannot have
  said = ""; // to those who do not see the page

  constructor(draw) {
    this.draw = draw;
    this.#restore();
    addEventListener("pagehide", () => this.#save());
  }

  get tree() {
    return this.trees[this.mode ?? "text"];
  }

  set(fields) {
    Object.assign(this, fields);
    this.draw();
  }

  say(words) {
    this.set({ said: words });
  }

  /** Asks the server what it serves, until it is ready. */
  async connect() {
    try {
      const [models, tokenizer, document] = await Promise.all(
        ["v1/models", "tokenizer_info", "openapi.json"].map((path) => ask(path)),
      );
      this.#meet(models.data[0], tokenizer, document);
    } catch (error) {
      this.#explain(error);
    }
  }

  async unlock(key) {
    apiKey.set(key.trim());
    await this.connect();
  }

  /** A text by the person, then what the model makes of it. Without a text it goes on. */
  async send(text) {
    const last = this.tree.path().at(-1) ?? null;
    this.notice = null;
    if (!text) return last?.role === "assistant" ? this.resume(last) : this.#answer(last);
    const turn = this.tree.add(last, "user", { text: this.#joined(last, text) });
    return this.#answer(turn);
  }

  /** Another version of what the model wrote. */
  regenerate(turn) {
    return this.#answer(this.tree.parentOf(turn));
  }

  /** The same text, continued. */
  resume(turn) {
    return this.#run(turn);
  }

  /** Another version of a turn with this text; after a person's turn the model writes again. */
  async edit(turn, text) {
    this.editing = null;
    const version = this.tree.add(this.tree.parentOf(turn), turn.role, { text });
    this.draw();
    if (turn.role === "user") await this.#answer(version);
  }

  /** Another version that keeps a text up to a token, takes an alternative there, and goes on. */
  async fork(turn, place, alternative) {
    this.stop();
    const text = turn.text.slice(0, offsets(turn.text, turn.tokens)[place]);
    const kept = {
      ...pick(turn, "contextIds"),
      tokens: turn.tokens.slice(0, place),
      forkedAt: place,
    };
    const version = this.tree.add(this.tree.parentOf(turn), "assistant", { ...kept, text });
    if (alternative.text === this.model.endText) {
      version.finish = "stop";
      return this.say("The text ends here");
    }
    const id =
      this.mode === "text"
        ? await tokenId(this.model.name, alternative.text).catch(() => null)
        : null;
    version.tokens.push({ ...turn.tokens[place], ...alternative, piece: alternative.text, id });
    version.text += alternative.text;
    return this.#run(version);
  }

  choose(turn) {
    this.tree.choose(turn);
    this.draw();
  }

  stop() {
    this.running?.controller.abort();
  }

  switchTo(mode) {
    this.stop();
    this.set({ mode, editing: null });
  }

  clear() {
    this.stop();
    this.trees[this.mode] = new Tree();
    this.set({ editing: null });
  }

  /** Takes in a file that the page exported, as another version of what is there. */
  async import(file) {
    this.stop();
    try {
      const { mode, system, options, ...saved } = await readExport(file, this.model);
      const known = this.controls[mode].map(({ name }) => name).filter((name) => name in options);
      this.trees[mode].graft(saved);
      if (mode === "chat") this.system = system;
      this.typed = { ...this.typed, [mode]: pick(options, ...known) };
      this.set({ mode, editing: null, notice: null });
      this.say("The conversation is here");
      this.#save();
    } catch (error) {
      const title = `${file.name} cannot be imported`;
      this.set({ notice: { title, message: error.message }, said: `${title}. ${error.message}` });
    }
  }

  #answer(parent) {
    return this.#run(this.tree.add(parent, "assistant"));
  }

  async #run(turn) {
    this.stop();
    const controller = new AbortController();
    const running = (this.running = { turn, controller });
    const changed = () => {
      turn.version += 1;
      this.draw();
    };
    this.say("Writing");
    try {
      await generate(this.tree, turn, this.#setup(), controller.signal, changed);
      this.say(`Done: ${turn.numTokens} tokens`);
    } catch (error) {
      this.#end(turn, error, controller.signal.aborted);
    }
    turn.state = "done";
    if (this.running === running) this.running = null;
    changed();
    this.#save();
  }

  #setup() {
    const { model, mode, system, wantsTokens } = this;
    const options = valuesOf(this.controls[mode], this.typed[mode]);
    return { model: model.name, maxLen: model.maxLen, mode, system, wantsTokens, options };
  }

  #end(turn, error, wasStopped) {
    if (wasStopped) {
      turn.finish = "aborted";
      return this.say("Stopped");
    }
    const known =
      error instanceof ServerError ? error : new ServerError("This cannot be sent", error.message);
    turn.error = pick(known, "title", "message", "param");
    this.say(`${known.title}. ${known.message}`);
    if (known.status === 401) this.#explain(known);
  }

  #meet(model, tokenizer, document) {
    const canChat = tokenizer.chat_template !== null;
    this.model = {
      name: model.id,
      maxLen: model.max_model_len,
      canChat,
      endText: tokenizer.eos_token,
    };
    this.controls = controlsOf(document);
    this.set({ phase: "ready", problem: null, mode: canChat ? (this.mode ?? "chat") : "text" });
  }

  #explain(error) {
    if (!(error instanceof ServerError)) throw error;
    const isLoading = error.status === 503 && error.code === "loading";
    const phase = error.status === 401 ? "key" : isLoading ? "loading" : "failed";
    this.set({ phase, problem: error });
    if (isLoading) setTimeout(() => this.connect(), LOADING_SECONDS * 1000);
  }

  /** In a text, what a person adds begins a line, unless it says itself how it goes on. */
  #joined(last, text) {
    const isApart = !last || this.mode === "chat" || /\s$/.test(last.text) || /^\s/.test(text);
    return isApart ? text : `\n${text}`;
  }

  #save() {
    const kept = pick(this, "mode", "trees", "typed", "system", "wantsTokens", "shades");
    try {
      sessionStorage.setItem(SAVED, JSON.stringify(kept));
    } catch {
      // More than the browser keeps: the page works, but a reload begins anew.
    }
  }

  #restore() {
    const kept = JSON.parse(sessionStorage.getItem(SAVED) ?? "null");
    if (!kept) return;
    const trees = { chat: new Tree(kept.trees.chat), text: new Tree(kept.trees.text) };
    Object.assign(this, kept, { trees });
  }
}
