// Presses outside of something that is open.

/** Calls `close` when a person presses elsewhere; returns what ends that. */
export function onPressOutside(element, close) {
  const pressed = (event) => element.contains(event.target) || close();
  document.addEventListener("pointerdown", pressed);
  return () => document.removeEventListener("pointerdown", pressed);
}
