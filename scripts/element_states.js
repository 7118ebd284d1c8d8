// The six boxes of docs/images/element, and how they get to where they are; run by screenshots.py.
document.title = "States";
document.head.replaceChildren();
document.body.innerHTML = `<style>
  :root { color-scheme: light dark; }
  body { margin: 0; padding: 1.75rem; background: light-dark(#f5f6f8, #14161a); color: light-dark(#1c2128, #e7e9ec);
    font: 15px/1.55 Inter, sans-serif; display: grid; grid-template-columns: 1fr 1fr; gap: 1.1rem; }
  div.box { padding: 1rem 1.25rem; background: light-dark(#fff, #1c1f25); border-radius: 14px;
    border: 1px solid light-dark(#d9dde3, #363c46); }
  h2 { margin: 0 0 .5rem; font-size: .78rem; font-weight: 600; color: light-dark(#5c636e, #a3aab5); }
  #scrolled { height: 6.5rem; overflow-y: auto; scrollbar-width: thin; }
  llm-stream ul { margin: 0; padding-left: 1.25rem; }
</style>` + ["streaming", "markdown", "reconnecting", "failed", "scrolled", "done"].map((id) => `<div class="box">
  <h2>${{ streaming: "While it is written", markdown: "With markdown, half written", reconnecting: "The connection is lost",
    failed: "A failure", scrolled: "The reader has scrolled up", done: "Complete" }[id]}</h2>
  <llm-stream id="${id}" manual ${id === "streaming" ? "expected-tokens=600" : ""} ${id === "markdown" ? "markdown" : ""}>
  </llm-stream></div>`).join("");
import("./llmstream/llmstream-element.js").then(() => {
  const of = (id) => document.getElementById(id);
  const say = (id, text) => of(id).push({ type: "text", text });
  const words = ("Far out, a boat that nobody had expected turned towards the light. It came slowly, as if it did "
    + "not quite believe it, and close to the rocks").split(/(?<= )/);
  for (let i = 0; i < 170; i++) say("streaming", "");
  for (const word of [...words, ...Array(20).fill("")]) say("streaming", word);
  say("markdown", "- **Light:** a lamp that turns\n- **Sound:** `bell.ring()` in fog\n- **A "
    + "keeper who answ");
  of("reconnecting").src = "http://127.0.0.1:1/";
  of("reconnecting").start();
  say("failed", "The harbour master looked at the sky, then at the clock, and");
  of("failed").src = "none";
  of("failed").fail(new Error("The model's answer was cut off."));
  say("done", "And since then it has been lit every night, also in summer, also when nobody is at sea.");
  of("done").push({ type: "done", reason: "stop", usage: null });
  for (let i = 1; i < 16; i++) say("scrolled", `${i}. The lamp turned, and the sea went dark again.\n`);
});
// Once all of them are there.
window.goOn = () => {
  const scrolled = document.getElementById("scrolled");
  document.getElementById("reconnecting").push({ type: "text", text: "It was the keeper’s old boat, and on its deck" });
  scrolled.dispatchEvent(new WheelEvent("wheel", { deltaY: -300, bubbles: true }));
  scrolled.scrollTop = 40;
};
