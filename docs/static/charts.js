// Charts come alive where there are any: the library is loaded from this site, then each still picture is replaced.
document.addEventListener("DOMContentLoaded", () => {
  const charts = document.querySelectorAll("figure.chart");
  if (charts.length === 0) return;
  const library = document.createElement("script");
  library.src = new URL("vega.js", document.querySelector("script[src*='charts.js']").src).href;
  const options = { actions: false, renderer: "svg", config: { rule: { aria: false } } };  // rules have no words
  library.onload = () => charts.forEach((figure) =>
    window.vegaEmbed(figure, { ...JSON.parse(figure.dataset.spec), description: figure.ariaLabel }, options));
  document.head.append(library);
});
