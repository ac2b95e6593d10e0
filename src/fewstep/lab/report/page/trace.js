(() => {
  "use strict";
  const at = (id) => document.getElementById("trace-" + id);
  const { runs, bounds, ways } = JSON.parse(at("data").textContent);
  const state = { run: 0, sample: 0, way: "deterministic", steps: 4, step: 4, token: -1 };
  let timer = null;

  const make = (tag, properties, parent) => parent.appendChild(Object.assign(document.createElement(tag), properties));
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const traces = () => runs[state.run].traces;
  const pathsOf = (way) => traces().paths.filter((path) => path.way === way);
  const path = () => pathsOf(state.way).find((one) => one.num_steps === state.steps);
  const sample = () => path().samples[state.sample];
  const textOf = (index) => traces().vocabulary[index];
  const near = (distance) => bounds.filter((bound) => distance === null || distance >= bound).length;
  const rms = (distance) => (distance === null ? "no boundary found" : `${distance} rms from a boundary`);
  const changed = (rows, step, column) => step > 1 && rows[step - 1][column] !== rows[step - 2][column];
  const late = (step) => state.steps > 1 && step === state.steps;

  /** Fall back to what the chosen run and way have: the nearest number of steps, the same share of the way. */
  function settle() {
    const there = ways.filter(([way]) => pathsOf(way).length).map(([way]) => way);
    if (!there.includes(state.way)) state.way = there[0];
    const share = state.step / state.steps;
    const counts = pathsOf(state.way).map((one) => one.num_steps);
    const before = state.steps;
    state.steps = counts.reduce((best, one) => (Math.abs(one - before) < Math.abs(best - before) ? one : best));
    if (state.steps !== before) state.step = Math.max(1, Math.round(share * state.steps));
    state.sample = Math.min(state.sample, traces().num_samples - 1);
  }

  function showControls() {
    const counts = pathsOf(state.way).map((one) => one.num_steps);
    const [count, step] = [at("count"), at("step")];
    count.max = counts.length - 1;
    count.value = counts.indexOf(state.steps);
    count.setAttribute("aria-valuetext", plural(state.steps, "step"));
    at("count-value").textContent = state.steps;
    step.max = state.steps;
    step.value = state.step;
    step.setAttribute("aria-valuetext", `step ${state.step} of ${state.steps}`);
    at("step-value").textContent = `${state.step} of ${state.steps}`;
    if (at("sample").length !== traces().num_samples) {
      at("sample").replaceChildren();
      for (let i = 0; i < traces().num_samples; i++) make("option", { value: i, textContent: i + 1 }, at("sample"));
    }
    at("sample").value = state.sample;
    for (const radio of at("ways").querySelectorAll("input")) {
      radio.checked = radio.value === state.way;
      radio.disabled = !pathsOf(radio.value).length;
    }
  }

  function showText() {
    const { tokens, distances, settled } = sample();
    const box = at("text");
    while (box.childElementCount > settled.length) box.lastElementChild.remove();
    while (box.childElementCount < settled.length) make("button", { type: "button", tabIndex: -1 }, box);
    if (state.token >= settled.length) state.token = -1;
    [...box.children].forEach((button, column) => {
      const distance = distances[state.step - 1][column];
      const fixed = settled[column] <= state.step;
      const moved = changed(tokens, state.step, column);
      button.textContent = textOf(tokens[state.step - 1][column]);
      if (fixed && state.steps > 1) make("sup", { textContent: settled[column] + (late(settled[column]) ? "!" : "") }, button);
      button.dataset.near = near(distance);
      button.className = (moved ? "trace-changed" : "") + (column === state.token ? " trace-chosen" : "");
      button.tabIndex = column === Math.max(0, state.token) ? 0 : -1;
      const words = [textOf(tokens[state.step - 1][column]), rms(distance)];
      if (moved) words.push("changed in this step");
      words.push(fixed ? `settled at step ${settled[column]}` : "will change again");
      button.title = words.slice(1).join(", ");
      button.setAttribute("aria-label", words.join(", "));
    });
  }

  function showStatus() {
    const { tokens, distances, settled } = sample();
    const moved = settled.filter((_, column) => changed(tokens, state.step, column)).length;
    const fixed = settled.filter((step) => step <= state.step).length;
    const close = distances[state.step - 1].filter((distance) => near(distance) === 0).length;
    const [from, to] = path().times.slice(state.step - 1, state.step + 1);
    at("summary").textContent =
      `Step ${state.step} of ${state.steps}, from t = ${from.toFixed(2)} to ${to.toFixed(2)}: ` +
      `${state.step > 1 ? `${plural(moved, "token")} changed, ` : ""}${fixed} of ${settled.length} settled, ` +
      `${close} closer than ${bounds[0]} rms to a boundary.`;
    const strength = path().reinjection > 0 && state.steps > 1 ? ` Re-injection of strength ${path().reinjection}.` : "";
    const { num_tokens: shown, block_size: all } = traces();
    const part = shown < all ? ` The first ${shown} of ${all} tokens are shown.` : "";
    at("note").textContent = ways.find(([way]) => way === state.way)[2] + strength + part;
    at("spoken").textContent = tokens[state.step - 1].map(textOf).join("");
    const counts = new Map();
    for (const step of settled) counts.set(step, (counts.get(step) || 0) + 1);
    const parts = [...counts].sort(([a], [b]) => a - b).map(([step, count]) => `${count} at step ${step}`);
    const note = state.steps > 1 ? ` of ${state.steps}. In the last step ${plural(counts.get(state.steps) || 0, "token")} still changed.` : ".";
    at("settled").textContent = `Tokens settled: ${parts.join(", ")}${note}`;
    at("grid").setAttribute("aria-label", `Boundary distance by step and token. ${at("settled").textContent}`);
  }

  function showDetail() {
    if (state.token < 0) {
      at("detail").textContent = "Choose a token to see its figures and what it was before.";
      return;
    }
    const { tokens, distances, settled } = sample();
    const column = state.token;
    const history = [];
    tokens.forEach((row, k) => {
      const last = history[history.length - 1];
      if (last && last.index === row[column]) last.to = k + 1;
      else history.push({ index: row[column], from: k + 1, to: k + 1 });
    });
    const told = history.map(({ index, from, to }) => `“${textOf(index)}” (step ${from === to ? from : `${from} to ${to}`})`);
    const index = tokens[state.step - 1][column];
    at("detail").textContent =
      `Token ${column + 1}, “${textOf(index)}” (number ${traces().token_ids[index]}): ${rms(distances[state.step - 1][column])} ` +
      `at step ${state.step}; settled at step ${settled[column]} of ${state.steps}${late(settled[column]) ? ", the last" : ""}.\n` +
      `On the way: ${told.join(", ")}.`;
  }

  function showGrid() {
    const { tokens, distances, settled } = sample();
    const grid = at("grid");
    grid.style.setProperty("--trace-tokens", settled.length);
    grid.replaceChildren();
    tokens.forEach((row, k) => {
      make("i", { textContent: k + 1, className: k + 1 === state.step ? "trace-now" : "" }, grid);
      row.forEach((_, column) => {
        const marks = [];
        if (changed(tokens, k + 1, column)) marks.push("trace-moved");
        if (k + 1 === state.step) marks.push("trace-now");
        if (k + 1 === state.step && column === state.token) marks.push("trace-picked");
        const cell = make("b", { className: marks.join(" ") }, grid);
        cell.dataset.near = near(distances[k][column]);
        cell.dataset.step = k + 1;
        cell.dataset.token = column;
      });
    });
    make("i", { textContent: "settled" }, grid);
    for (const step of settled) make("u", {}, grid).style.setProperty("--trace-part", step / state.steps);
  }

  function show() {
    settle();
    showControls();
    showText();
    showStatus();
    showDetail();
    showGrid();
  }

  function set(changes) {
    Object.assign(state, changes);
    show();
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    at("play").textContent = "Play";
    at("status").setAttribute("aria-live", "polite");
  }

  function play() {
    if (timer !== null) return stop();
    at("play").textContent = "Pause";
    at("status").setAttribute("aria-live", "off"); // a voice could not follow
    if (state.step === state.steps) set({ step: 1 });
    timer = setInterval(() => {
      if (state.step < state.steps) set({ step: state.step + 1 });
      if (state.step >= state.steps) stop();
    }, 700);
  }

  function moveInText(event) {
    const last = at("text").childElementCount - 1;
    const here = Math.max(0, state.token);
    const target = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    set({ token: Math.min(Math.max(target, 0), last) });
    at("text").children[state.token].focus();
  }

  runs.forEach((run, index) => make("option", { value: index, textContent: run.name }, at("run")));
  at("run-field").hidden = runs.length < 2;
  for (const [way, words] of ways) {
    const label = make("label", {}, at("ways"));
    make("input", { type: "radio", name: "trace-way", value: way }, label);
    label.append(" " + words);
  }
  at("run").addEventListener("change", (event) => set({ run: Number(event.target.value), token: -1 }));
  at("sample").addEventListener("change", (event) => set({ sample: Number(event.target.value), token: -1 }));
  at("ways").addEventListener("change", (event) => set({ way: event.target.value }));
  at("count").addEventListener("input", (event) => {
    stop();
    const steps = pathsOf(state.way)[Number(event.target.value)].num_steps;
    set({ steps, step: Math.max(1, Math.round((state.step / state.steps) * steps)) });
  });
  at("step").addEventListener("input", (event) => {
    stop();
    set({ step: Number(event.target.value) });
  });
  at("play").addEventListener("click", play);
  at("text").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) set({ token: [...at("text").children].indexOf(button) });
  });
  at("text").addEventListener("focusin", (event) => {
    const token = [...at("text").children].indexOf(event.target.closest("button"));
    if (token >= 0 && token !== state.token) set({ token });
  });
  at("text").addEventListener("keydown", moveInText);
  at("grid").addEventListener("click", (event) => {
    const { step, token } = event.target.dataset;
    if (step) set({ step: Number(step), token: Number(token) });
  });
  at("app").hidden = false;
  show();
})();
