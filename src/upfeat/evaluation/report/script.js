"use strict";

// Tables: a click on a heading sorts by that column, a second one turns the order round.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const numeric = column > 0;
    head.querySelector("button").addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") === "none" ? !numeric
        : head.getAttribute("aria-sort") === "descending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        if (!numeric) return cell.textContent;
        return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
      };
      const compare = (a, b) => {
        const left = key(a), right = key(b);
        if (!numeric) return rising ? left.localeCompare(right) : right.localeCompare(left);
        if (Number.isNaN(left) || Number.isNaN(right)) {
          return Number.isNaN(left) - Number.isNaN(right); // missing ones last, either way
        }
        return rising ? left - right : right - left;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

// Sliders: two pictures of the figures below, one over the other up to a movable boundary.
for (const compare of document.querySelectorAll(".compare")) {
  const stage = compare.querySelector(".stage");
  const position = compare.querySelector("input[type=range]");
  const pictures = {};
  const tags = {};
  for (const side of ["right", "left"]) {
    pictures[side] = document.createElement("img");
    tags[side] = document.createElement("span");
    tags[side].className = `tag ${side}`;
    tags[side].setAttribute("aria-hidden", "true");
  }
  const edge = document.createElement("span");
  edge.className = "edge";
  stage.append(pictures.right, pictures.left, edge, tags.left, tags.right);
  const choices = [...compare.querySelectorAll("select")];
  const label = (side) => {
    const choice = choices.find((select) => select.dataset.side === side);
    return choice.selectedOptions[0].textContent;
  };
  const move = () => {
    stage.style.setProperty("--at", `${position.value}%`);
    position.setAttribute("aria-valuetext",
      `${position.value} % ${label("left")}, ${100 - position.value} % ${label("right")}`);
  };
  const choose = (select) => {
    const source = document.getElementById(select.value);
    const picture = pictures[select.dataset.side];
    picture.src = source.src;
    picture.alt = source.alt;
    picture.classList.toggle("blocks", source.classList.contains("blocks"));
    tags[select.dataset.side].textContent = label(select.dataset.side);
    move();
  };
  for (const select of choices) {
    select.addEventListener("change", () => choose(select));
    choose(select);
  }
  position.addEventListener("input", move);
  const follow = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = stage.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    position.value = Math.round(100 * Math.min(1, Math.max(0, share)));
    move();
  };
  stage.addEventListener("pointerdown", follow);
  stage.addEventListener("pointermove", follow);
  compare.hidden = false;
}

// Paper cannot be unfolded: commands and shared settings are printed, those of single rows are not.
const folded = () => [...document.querySelectorAll(".behind > details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => {
  opened = folded();
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
