"use strict";
(() => {
  const source = document.getElementById("browse-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const find = id => document.getElementById(id);
  const svg = find("photo"), slider = find("photo-slider"), threshold = find("threshold"), only = find("only-class"), truth = find("show-truth");

  const make = (name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const outline = ([x, y, width, height], kind) => svg.append(make("rect", {x, y, width, height, class: "box " + kind}));

  // How much of a plate those that are there already cover.
  const covered = ([x, y, w, h], taken) => taken.reduce((sum, [X, Y, W, H]) =>
    sum + Math.max(0, Math.min(x + w, X + W) - Math.max(x, X)) * Math.max(0, Math.min(y + h, Y + H) - Math.max(y, Y)), 0);

  // A name on its plate: inside the photo, as large on a phone as on a screen, at the corner where it hides the least of others.
  // Where every corner would hide another name the box stays without one, and in a crowded photo where the plate is larger.
  const label = (photo, [x, y, w, h], kind, words, below, unit, taken, crowded) => {
    const size = 12 * unit, tall = size * 1.3;
    const text = make("text", {"font-size": size, class: "name"}, words);
    svg.append(text);
    const wide = text.getComputedTextLength() + size * 0.5;
    const lefts = [x, x + w - wide], tops = [y - tall, y + h, y, y + h - tall];
    if (below) tops.reverse();
    const places = tops.flatMap(top => lefts.map(left => [Math.max(0, Math.min(left, photo.width - wide)), Math.max(0, Math.min(top, photo.height - tall)), wide, tall]));
    const best = places.reduce((a, b) => covered(b, taken) < covered(a, taken) ? b : a);
    if (covered(best, taken) > 0.02 * wide * tall || (crowded && w * h < wide * tall)) { text.remove(); return; }
    taken.push(best);
    text.setAttribute("x", best[0] + size * 0.25);
    text.setAttribute("y", best[1] + size);
    text.before(make("rect", {x: best[0], y: best[1], width: wide, height: tall, class: "back " + kind}));
  };

  const show = () => {
    const photo = data.photos[slider.value], least = Number(threshold.value), wanted = only.value;
    const keep = row => wanted === "" || row[4] === Number(wanted);
    svg.setAttribute("viewBox", `0 0 ${photo.width} ${photo.height}`);
    svg.replaceChildren(make("image", {href: photo.picture, width: photo.width, height: photo.height, preserveAspectRatio: "none"}));
    const area = svg.getBoundingClientRect();
    const unit = 1 / Math.min(area.width / photo.width, area.height / photo.height);
    const real = truth.checked ? photo.truth.filter(keep) : [];
    const guesses = photo.predicted.filter(row => keep(row) && row[5] >= least).reverse();  // the most certain on top
    const taken = [], crowded = real.length + guesses.length > 15;
    for (const row of real) outline(row, row[5] ? "truth crowd" : "truth");
    for (const row of guesses) outline(row, "predicted");
    for (const row of guesses.slice().reverse()) label(photo, row, "predicted", `${data.classes[row[4]]} ${row[5].toFixed(2)}`, false, unit, taken, guesses.length > 15);
    for (const row of real) label(photo, row, "truth", (row[5] ? "crowd: " : "") + data.classes[row[4]], true, unit, taken, crowded);
    find("threshold-value").textContent = least.toFixed(2);
    find("photo-number").textContent = `${Number(slider.value) + 1} of ${data.photos.length}`;
    find("shown").textContent = `${photo.name}: ${guesses.length} predicted` + (truth.checked ? `, ${real.filter(row => !row[5]).length} in the ground truth` : "") +
      (real.some(row => row[5]) ? " and a crowd region" : "") + `. ${photo.why}`;
  };

  data.classes.forEach((name, number) => {
    const option = document.createElement("option");
    option.value = number;
    option.textContent = name;
    only.append(option);
  });
  slider.max = data.photos.length - 1;
  const step = by => { slider.value = Number(slider.value) + by; show(); };
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  for (const control of [slider, threshold]) control.addEventListener("input", show);
  for (const control of [only, truth]) control.addEventListener("change", show);
  window.addEventListener("resize", show);
  show();
})();
