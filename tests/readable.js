// What on this page is out of reach for people who use a keyboard, a screen reader or a small screen, or see little.
(async () => {
  document.querySelectorAll("details").forEach((folded) => { folded.open = true; });
  for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
  const shown = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility());
  const all = (kind, fails = () => true) => shown.filter((one) => one.matches(kind) && fails(one));
  const scrolls = (one) => one.scrollWidth > one.clientWidth && /auto|scroll/.test(getComputedStyle(one).overflowX);
  const named = (one) => one.ariaLabel || one.labels?.length || one.innerText.trim();
  const heads = all("h1, h2, h3, h4, h5, h6");
  const level = (i) => Number(heads[i]?.tagName[1] ?? 0);
  const found = {
    "not one h1": all("h1").length === 1 ? [] : [document.body],
    "a level skipped": heads.filter((_, i) => level(i) > level(i - 1) + 1),
    "no name": all("input, select, button, summary, [role=button]", (one) => !named(one)),
    "no alternative text": all("img", (one) => !one.alt || one.alt.endsWith(".png")),
    "cut off": all(".main", (one) => one.getBoundingClientRect().right > innerWidth),
    "not scrolled by keys": all("*", (one) => scrolls(one) && one.tabIndex < 0 && !one.querySelector("a, input, select")),
  };
  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
  const ground = (one) => {
    const [r, g, b, opaque = 1] = parts(getComputedStyle(one).backgroundColor);
    return opaque === 1 ? [r, g, b]
      : ground(one.parentElement).map((below, i) => opaque * [r, g, b][i] + (1 - opaque) * below);
  };
  const light = (colour) => colour.slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0.05);
  const faint = (one) => {
    const ratio = light(parts(getComputedStyle(one).color)) / light(ground(one));
    return Math.max(ratio, 1 / ratio) < 4.5;
  };
  const says = (one) => [...one.childNodes].some((part) => part.nodeType === Node.TEXT_NODE && part.data.trim());
  for (const theme of ["light", "dark"]) {
    document.body.dataset.theme = theme;
    found[`faint when ${theme}`] = all(":not(svg *)", (one) => says(one) && faint(one));
  }
  const told = ([what, those]) => those.map((one) => `${what}: ${one.outerHTML.slice(0, 200)}`);
  return Object.entries(found).flatMap(told);
})();
