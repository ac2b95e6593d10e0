(() => {
  "use strict";
  const at = (id) => document.getElementById("trace-" + id);
  const { runs, bounds } = JSON.parse(at("data").textContent);
  const chosen = { run: 0, sample: 0, mode: "deterministic", count: 4, step: 4, token: 0 };

  const make = (tag, properties, parent) => parent.appendChild(Object.assign(document.createElement(tag), properties));
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const traces = () => runs[chosen.run].traces;
  const paths = (mode) => traces().paths.filter((path) => path.mode === mode);
  const path = () => paths(chosen.mode).find((path) => path.num_steps === chosen.count);
  const sample = () => path().samples[chosen.sample];
  const near = (distance) => bounds.filter((bound) => distance === null || distance >= bound).length;
  const rms = (distance) => (distance === null ? "no flip found" : `${distance} rms from a flip`);
  const text = (step, token) => traces().vocabulary[sample().tokens[step - 1][token]];
  const changed = (step, token) => step > 1 && sample().tokens[step - 1][token] !== sample().tokens[step - 2][token];

  function fill(select, options, value) {
    select.replaceChildren();
    for (const [key, words] of options) make("option", { value: key, textContent: words }, select);
    select.value = value;
  }

  /** Fall back to what the chosen run and mode have: the nearest number of steps, the same share of the trajectory. */
  function settle() {
    for (const option of at("mode").options) option.disabled = !paths(option.value).length;
    if (!paths(chosen.mode).length) chosen.mode = traces().paths[0].mode;
    const counts = paths(chosen.mode).map((path) => path.num_steps);
    const before = chosen.count;
    chosen.count = counts.reduce((best, count) => (Math.abs(count - before) < Math.abs(best - before) ? count : best));
    chosen.step = Math.max(1, Math.round((chosen.step / before) * chosen.count));
    chosen.sample = Math.min(chosen.sample, traces().num_samples - 1);
    chosen.token = Math.min(chosen.token, traces().num_tokens - 1);
  }

  function showControls() {
    fill(at("run"), runs.map((run, index) => [index, run.name]), chosen.run);
    fill(at("sample"), path().samples.map((_, index) => [index, index + 1]), chosen.sample);
    at("mode").value = chosen.mode;
    fill(at("count"), paths(chosen.mode).map(({ num_steps: count }) => [count, count]), chosen.count);
    Object.assign(at("step"), { max: chosen.count, value: chosen.step });
    at("step").setAttribute("aria-valuetext", `step ${chosen.step} of ${chosen.count}`);
    at("step-value").textContent = `${chosen.step} of ${chosen.count}`;
    const strength = path().reinjection > 0 && chosen.count > 1 ? ` Re-injection has strength ${path().reinjection}.` : "";
    const { num_tokens: shown, block_size: all } = traces();
    const part = shown < all ? ` The first ${shown} of ${all} tokens are shown.` : "";
    at("note").textContent = at("mode").selectedOptions[0].dataset.note + strength + part;
  }

  function showText() {
    const { distances, settled } = sample();
    at("text").replaceChildren();
    settled.forEach((last, token) => {
      const distance = distances[chosen.step - 1][token];
      const words = [rms(distance), last <= chosen.step ? `settled at step ${last}` : "will change again"];
      if (changed(chosen.step, token)) words.push("changed in this step");
      const button = make("button", { type: "button", textContent: text(chosen.step, token) }, at("text"));
      button.setAttribute("aria-label", [text(chosen.step, token), ...words].join(", "));
      button.title = words.join(", ");
      button.dataset.near = near(distance);
      button.className = changed(chosen.step, token) ? "changed" : "";
      button.tabIndex = token === chosen.token ? 0 : -1;
    });
    at("text").children[chosen.token].classList.add("chosen");
  }

  function showStatus() {
    const { tokens, distances, settled } = sample();
    const [from, to] = path().times.slice(chosen.step - 1, chosen.step + 1);
    const moved = settled.filter((_, token) => changed(chosen.step, token)).length;
    const fixed = settled.filter((last) => last <= chosen.step).length;
    const close = distances[chosen.step - 1].filter((distance) => near(distance) === 0).length;
    at("status").textContent =
      `Step ${chosen.step} of ${chosen.count}, from t = ${from.toFixed(2)} to ${to.toFixed(2)}: ` +
      `${plural(moved, "token")} changed, ${fixed} of ${settled.length} settled, ${close} closer than ${bounds[0]} rms to a flip.`;
    const starts = tokens.map((_, k) => k + 1).filter((step) => step === 1 || changed(step, chosen.token));
    const parts = starts.map((from, index) => {
      const to = (starts[index + 1] ?? chosen.count + 1) - 1;
      return `“${text(from, chosen.token)}” (step ${from === to ? from : `${from} to ${to}`})`;
    });
    at("detail").textContent =
      `Token ${chosen.token + 1}: ${parts.join(", ")}. ${rms(distances[chosen.step - 1][chosen.token])} at step ${chosen.step}.`;
  }

  function showGrid() {
    const { tokens, distances, settled } = sample();
    const grid = at("grid");
    grid.style.setProperty("--tokens", settled.length);
    grid.replaceChildren();
    tokens.forEach((row, k) => {
      make("i", { textContent: k + 1 }, grid);
      row.forEach((_, token) => {
        const marks = [changed(k + 1, token) && "moved", k + 1 === chosen.step && "now", token === chosen.token && "chosen"];
        const cell = make("b", { className: marks.filter(Boolean).join(" "), title: text(k + 1, token) }, grid);
        Object.assign(cell.dataset, { near: near(distances[k][token]), step: k + 1, token });
      });
    });
    const late = settled.filter((step) => step === chosen.count).length;
    const summary = `${late} of ${plural(settled.length, "token")} settled in the last step only.`;
    at("settled").textContent = chosen.count > 1 ? summary : "";
    grid.setAttribute("aria-label", `Distance to a flip by step and token. ${summary}`);
  }

  function set(changes) {
    Object.assign(chosen, changes);
    settle();
    showControls();
    showText();
    showStatus();
    showGrid();
  }

  for (const name of ["run", "sample", "count"]) {
    at(name).addEventListener("change", (event) => {
      if (name === "count") chosen.step = Math.round((chosen.step / chosen.count) * Number(event.target.value));
      set({ [name]: Number(event.target.value) });
    });
  }
  at("mode").addEventListener("change", (event) => set({ mode: event.target.value }));
  at("step").addEventListener("input", (event) => set({ step: Number(event.target.value) }));
  at("text").addEventListener("click", (event) => {
    const token = [...at("text").children].indexOf(event.target.closest("button"));
    if (token >= 0) set({ token });
    at("text").children[chosen.token].focus();
  });
  at("text").addEventListener("keydown", (event) => {
    const last = traces().num_tokens - 1;
    const target = { ArrowRight: chosen.token + 1, ArrowLeft: chosen.token - 1, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    set({ token: Math.min(Math.max(target, 0), last) });
    at("text").children[chosen.token].focus();
  });
  at("grid").addEventListener("click", (event) => {
    const { step, token } = event.target.dataset;
    if (step) set({ step: Number(step), token: Number(token) });
  });
  at("run-field").hidden = runs.length < 2;
  at("app").hidden = false;
  set({});
})();
