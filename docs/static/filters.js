// Above the table of claims, a list for each of these columns: only rows with what is chosen stay, and are counted.
document.addEventListener("DOMContentLoaded", () => {
  const table = document.getElementById("verdicts");
  if (!table) return;
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const lists = new Map();
  const said = document.createElement("output");
  const show = () => {
    rows.forEach((row) => {
      row.hidden = [...lists].some(([i, list]) => list.value && row.cells[i].textContent !== list.value);
    });
    said.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  const bar = document.createElement("p");
  for (const name of ["scale", "verdict", "notebook"]) {
    const i = heads.indexOf(name), list = document.createElement("select"), label = document.createElement("label");
    list.append(new Option("all", ""), ...[...new Set(rows.map((row) => row.cells[i].textContent))].sort().map((v) => new Option(v)));
    list.onchange = show;
    lists.set(i, list);
    label.append(`${name} `, list);
    bar.append(label, " ");
  }
  bar.append(said);
  table.parentElement.before(bar);
});
