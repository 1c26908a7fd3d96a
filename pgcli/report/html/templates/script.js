"use strict";
// Values of charts for the mouse and the keyboard, and series that can be switched off. The page is whole without it.
(() => {
  const make = (name, parent, className) => {
    const space = name === "line" || name === "circle" ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
    const node = document.createElementNS(space, name);
    if (className) node.setAttribute("class", className);
    parent.append(node);
    return node;
  };
  const number = (value) => {
    const size = Math.abs(value);
    if (Number.isInteger(value) || size >= 10000) return Math.round(value).toLocaleString("en");
    return size >= 0.001 || size === 0 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
  };
  const nearest = (values, x) => {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] <= x) low = middle; else high = middle;
    }
    return Math.abs(values[low] - x) <= Math.abs(values[high] - x) ? low : high;
  };

  function setUp(figure, off) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const plot = figure.querySelector(".plot"), svg = plot.querySelector("svg");
    const every = [...new Set(data.series.flatMap((one) => one.x))].sort((a, b) => a - b);
    const scale = ([low, high], log) => (value) =>
      log ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
    const across = scale(data.x, false), up = scale(data.y, data.log);
    const cursor = make("line", svg, "cursor off");
    cursor.setAttribute("y1", "0");
    cursor.setAttribute("y2", "100%");
    const dots = data.series.map((one) => make("circle", svg, `dot s${one.number % 7} off`));
    dots.forEach((dot) => dot.setAttribute("r", "4"));
    const tip = make("div", plot, "tip");
    tip.hidden = true;
    let at = every.length - 1;
    for (const [name, value] of [["role", "slider"], ["tabindex", "0"], ["aria-label", plot.dataset.summary],
      ["aria-valuemin", every[0]], ["aria-valuemax", every[at]], ["aria-valuenow", every[at]]])
      plot.setAttribute(name, value);

    const hide = () => {
      tip.hidden = true;
      [cursor, ...dots].forEach((node) => node.classList.add("off"));
    };
    const show = (index) => {
      at = Math.max(0, Math.min(every.length - 1, index));
      const x = every[at], share = across(x), texts = [`${number(x)}`];
      tip.replaceChildren();
      make("strong", tip).textContent = number(x);
      for (const node of ["x1", "x2"]) cursor.setAttribute(node, `${100 * share}%`);
      cursor.classList.remove("off");
      data.series.forEach((one, place) => {
        const k = nearest(one.x, x), inside = x >= one.x[0] && x <= one.x[one.x.length - 1];
        const value = one.y[k], gone = !inside || value === null || off.has(one.number);
        dots[place].classList.toggle("off", gone);
        if (gone) return;
        dots[place].setAttribute("cx", `${100 * across(one.x[k])}%`);
        dots[place].setAttribute("cy", `${100 * (1 - up(value))}%`);
        const band = one.low && one.low[k] !== null ? ` [${number(one.low[k])}, ${number(one.high[k])}]` : "";
        const row = make("div", tip);
        make("span", row, `swatch s${one.number % 7} d${one.number % 4}`);
        make("span", row).textContent = one.label;
        make("b", row).textContent = number(value) + band;
        texts.push(`${one.label}: ${number(value)}${band}`);
      });
      tip.hidden = false;
      const room = plot.clientWidth, left = share * room;
      tip.style.left = `${Math.max(0, Math.min(room - tip.offsetWidth, left > room / 2 ? left - tip.offsetWidth - 12 : left + 12))}px`;
      plot.setAttribute("aria-valuenow", x);
      plot.setAttribute("aria-valuetext", texts.join("; "));
    };
    const follow = (event) => {
      const box = svg.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
      show(nearest(every, data.x[0] + share * (data.x[1] - data.x[0])));
    };
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(at); });
    plot.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 10 : 1;
      const to = { ArrowLeft: at - step, ArrowRight: at + step, Home: 0, End: every.length - 1 }[event.key];
      if (event.key === "Escape") hide();
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
    return hide;
  }

  for (const group of document.querySelectorAll(".group")) {
    const off = new Set(), charts = [...group.querySelectorAll(".chart")].map((figure) => setUp(figure, off));
    for (const entry of group.querySelectorAll(".legend li")) {
      const series = Number(entry.dataset.series), button = document.createElement("button");
      button.type = "button";
      button.append(...entry.childNodes);
      button.setAttribute("aria-pressed", "true");
      entry.append(button);
      button.addEventListener("click", () => {
        if (!off.delete(series)) off.add(series);
        button.setAttribute("aria-pressed", String(!off.has(series)));
        charts.forEach((hide) => hide());
        group.querySelectorAll(`svg [data-series="${series}"]`).forEach((node) => node.classList.toggle("off", off.has(series)));
      });
    }
  }
})();
