// A conversation as a file: all of its versions as JSON, what is shown as Markdown.

export const FORMAT = "gyrfalcon conversation";
export const VERSION = 1;

export function asJson({ model, mode, system, typed, tree }) {
  const about = {
    format: FORMAT,
    version: VERSION,
    model: model.name,
    mode,
    exported: new Date().toISOString(),
  };
  return JSON.stringify(
    { ...about, system: mode === "chat" ? system : "", options: typed[mode], ...tree.toJSON() },
    null,
    2,
  );
}

export function asMarkdown({ model, mode, system, tree }) {
  const turns = tree.path();
  if (mode === "text") return turns.map(({ text }) => text).join("") + "\n";
  const said = turns.map(
    ({ role, text }) => `**${role === "user" ? "You" : model.name}**\n\n${text.trim()}\n`,
  );
  if (system) said.unshift(`**System**\n\n${system.trim()}\n`);
  return said.join("\n");
}

export function download(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
