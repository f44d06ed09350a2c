"use strict";
// Sorting: a button in each heading; numbers by value, what has none last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const empty = (text) => text === "" || text === "nan" || text === "None" || text === "<NA>";
  headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((one, two) => {
      const [a, b] = [key(one, column), key(two, column)];
      if (empty(a) || empty(b)) return empty(a) - empty(b);
      const difference = Number(a) - Number(b);
      return sign * (Number.isNaN(difference) ? a.localeCompare(b, undefined, { numeric: true }) : difference);
    });
    body.append(...rows);
  }));
}
// While trials run: read the page again from disk, unless the reader has switched that off or opened something.
const refresh = document.getElementById("refresh");
if (refresh) {
  refresh.checked = sessionStorage.getItem("refresh") !== "off";
  refresh.addEventListener("change", () => sessionStorage.setItem("refresh", refresh.checked ? "on" : "off"));
  setInterval(() => {
    if (refresh.checked && !document.querySelector("main details[open], th[aria-sort]")) location.reload();
  }, 15000);
}
