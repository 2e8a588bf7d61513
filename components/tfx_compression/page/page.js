// Draws the plots, and copies JSON. The page's policy lets no other script run, inline handlers included.
function draw(plot) {
  const spec = JSON.parse(plot.nextElementSibling.textContent);
  spec.config.legend.columns = Math.max(1, Math.floor(plot.clientWidth / 230));
  if (spec.facet) spec.columns = Math.max(1, Math.floor((plot.clientWidth - 50) / (spec.spec.width + spec.spacing)));
  vegaEmbed(plot, spec, {renderer: "svg", actions: false, ast: true});  // ast: without JavaScript's eval
}
async function copy(button) {
  const json = button.parentElement.querySelector("pre");
  getSelection().selectAllChildren(json);  // where nothing may write to the clipboard, the text is at least selected
  let copied = false;
  try { await navigator.clipboard.writeText(json.textContent); copied = true; }
  catch { copied = document.execCommand("copy"); }
  button.textContent = copied ? "Copied" : "Selected: copy it with Ctrl+C";
}
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not(.json):not([open])")];
  closed.forEach(part => part.open = true);
});
addEventListener("afterprint", () => closed.forEach(part => part.open = false));
addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".plot").forEach(draw);
  document.querySelectorAll(".json button").forEach(button => button.addEventListener("click", () => copy(button)));
});
