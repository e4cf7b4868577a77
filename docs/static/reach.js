document.addEventListener("DOMContentLoaded", () => {
  // What is wider than its place takes the focus, so that arrow keys scroll it, and has a name.
  const named = (name) => ({ tabindex: 0, role: "group", "aria-label": name });
  const added = { PRE: named("Code"), DIV: named("Table") };
  const observer = new ResizeObserver((seen) => seen.forEach(({ target: box }) => {
    const wide = box.scrollWidth > box.clientWidth;
    for (const [name, value] of Object.entries(added[box.tagName] ?? { tabindex: 0 }))
      wide ? box.setAttribute(name, value) : box.removeAttribute(name);
  }));
  const boxes = document.querySelectorAll("pre, .table-wrapper, figure.chart, math[display='block']");
  boxes.forEach((box) => observer.observe(box));

  // On a narrow screen furo's menus open by labels, which no key reaches: buttons within them do the same.
  document.querySelectorAll(".nav-overlay-icon, .toc-overlay-icon").forEach((label) => {
    const menu = document.querySelector(label.matches(".nav-overlay-icon") ? ".sidebar-drawer" : ".toc-drawer");
    const box = label.control, button = label.firstElementChild;
    Object.assign(button, { tabIndex: 0, role: "button", ariaLabel: box.ariaLabel, ariaExpanded: box.checked });
    box.addEventListener("change", () => { button.ariaExpanded = box.checked; });
    button.onkeydown = (press) => {
      if (press.key !== "Enter" && press.key !== " ") return;
      press.preventDefault();
      box.click();
      [...menu.querySelectorAll("a")].find((link) => link.checkVisibility()).focus();
      menu.onkeydown = ({ key }) => { if (key === "Escape") { box.click(); button.focus(); } };
    };
  });
});
