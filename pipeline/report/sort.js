// Makes the tables that say so sortable by a click on a heading. Without scripts they are plain tables, best first.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, place) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") !== "descending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = (row) => row.cells[place].dataset.key ?? row.cells[place].textContent.trim();
      const number = (text) => parseFloat(text.replaceAll(",", ""));
      const rows = [...body.rows].sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        const [x, y] = [number(a), number(b)];
        if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;  // what is missing comes last
        const order = Number.isNaN(x) ? a.localeCompare(b) : x - y;
        return falling ? -order : order;
      });
      body.append(...rows);
    });
  });
}
