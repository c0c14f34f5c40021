// What weight decay will do to a run, predicted as `dynamics.py` does it: the two are tested against each other.
"use strict";

const HALF_STEP = { bfloat16: 2 ** -8, float32: 2 ** -24 };

function learningRate(run, step) {
  if (step < run.warmup) return run.peak * step / run.warmup;
  const progress = (step - run.warmup) / Math.max(run.steps - run.warmup, 1);
  if (run.shape === "constant") return run.peak;
  if (run.shape === "drop") return run.peak * (step < 0.5 * run.steps ? 1 : run.finalFraction);
  const rest = run.shape === "linear" ? 1 - progress : 0.5 * (1 + Math.cos(Math.PI * progress));
  return run.peak * (run.finalFraction + (1 - run.finalFraction) * rest);
}

// [step, learning rate, norm of the weights] along the run, integrated in `most` pieces at most.
function norms(run, decay, most = 20000) {
  const count = Math.min(run.steps, most), width = run.steps / count;
  let square = run.start ** 2, step = 0;
  const path = [[0, learningRate(run, 0), run.start]];
  for (let index = 0; index < count; index++) {
    const lr = learningRate(run, width === 1 ? index : (index + 0.5) * width);
    const kept = Math.max(1 - lr * decay, 0) ** 2, shrunk = kept ** width;
    const added = kept === 1 ? width : (1 - shrunk) / (1 - kept);
    square = shrunk * square + added * (lr * run.drive) ** 2;
    step += width;
    path.push([step, lr, Math.sqrt(square)]);
  }
  return path;
}

function totalRate(run, most = 20000) {
  const count = Math.min(run.steps, most), width = run.steps / count;
  let total = 0;
  for (let index = 0; index < count; index++) {
    total += width * learningRate(run, width === 1 ? index : (index + 0.5) * width);
  }
  return total;
}

function roundedAway(lr, decay, weights) {
  if (lr * decay === 0) return 0;
  return Math.min(Math.max(Math.log2(HALF_STEP[weights] / (lr * decay)), 0), 1);
}

// The answer in words: [name, value, where it comes from].
function answer(run) {
  const rate = run.peak * run.decay, decays = rate > 0;
  const [low, high, source] = run.optimizer === "sgd" && run.passes > 1
    ? [5e-4 / run.peak, 7.5e-4 / run.peak, "valley of Figs 3 and 10: η·λ of 5e-4 to 7.5e-4"]
    : [3 / (run.peak * run.steps), 9 / (run.peak * run.steps), "Fig 6: λ·η·T of 3 to 9"];
  const lines = [
    ["regime", run.passes > 1 ? "over-training" : "under-training", `${number(run.passes)} pass(es) in ${number(run.steps)} steps`],
    ["λ supported by the study", `${number(low)} to ${number(high)}`, source],
    ["timescale τ at the peak of η", decays ? `${number(1 / rate)} steps, ${number(run.passes / (rate * run.steps))} passes` : "none", "1/(ηλ): how far back the weights remember (2405.13698)"],
    ["λ·Ση over the run", number(run.decay * totalRate(run, 2000)), "decay alone shrinks by exp of minus this"],
    ["relative update in equilibrium", number(Math.sqrt(2 * rate)), "√(2ηλ), whatever the gradients (2305.17212)"],
    ["decay rounded away", `for ${Math.round(100 * roundedAway(run.peak, run.decay, run.weights))} % of the weights`, `weights stored in ${run.weights}, decay a step of its own`],
  ];
  if (run.optimizer === "adamw") {
    const last = (path) => path[path.length - 1][2];
    const end = last(norms(run, run.decay, 2000)), free = last(norms(run, 0, 2000));
    lines.push(["‖w‖ at the end", `${number(end)} (λ = 0: ${number(free)})`, "noise of size η per weight against decay; measured runs were within a factor of 2"]);
  }
  return lines;
}

function number(value) {
  if (!isFinite(value)) return "∞";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

function readRun(form) {
  const value = (name) => form.elements[name].value, power = (name) => 10 ** Number(value(name));
  const parameters = power("parameters"), samples = power("samples"), passes = power("passes");
  const steps = Math.max(1, Math.round(samples * passes / power("batch")));
  return {
    parameters, passes, steps, optimizer: value("optimizer"), weights: value("weights"), shape: value("shape"),
    peak: power("lr"), decay: Number(value("decay")) <= -6 ? 0 : power("decay"),
    warmup: Math.round(steps * Number(value("warmup")) / 100), finalFraction: 0.1,
    start: 0.02 * Math.sqrt(parameters), drive: Math.sqrt(parameters),
  };
}

// Two lines in a box of 100 by 40, the vertical axis logarithmic.
function chart(paths, pick) {
  const values = paths.map((path) => path.map(pick)), all = values.flat().filter((v) => v > 0).map(Math.log);
  const low = Math.min(...all), span = Math.max(Math.max(...all) - low, 1e-9);
  return values.map((line) => line.map((v, i) => {
    const height = v > 0 ? (Math.log(v) - low) / span : 0;
    return `${(100 * i / (line.length - 1)).toFixed(2)},${(39 - 38 * height).toFixed(2)}`;
  }).join(" "));
}

// One step at the peak of η and in equilibrium, as arrows; both parts enlarged by the factor returned.
function arrows(run) {
  const norm = run.decay > 0 ? run.drive * Math.sqrt(run.peak / (2 * run.decay)) : run.start;
  const update = run.peak * run.drive / norm, decay = run.peak * run.decay;
  const factor = 0.45 / Math.max(update, decay);
  return { factor, update: update * factor, decay: decay * factor };
}

if (typeof document !== "undefined") {
  const form = document.getElementById("advise-form");
  const show = (id, text) => { document.getElementById(id).textContent = text; };
  const refresh = () => {
    const run = readRun(form), adam = run.optimizer === "adamw";
    for (const input of form.querySelectorAll("input[type=range]")) {
      const raw = Number(input.value), zero = input.name === "decay" && raw <= -6;
      const shown = input.name === "warmup" ? `${raw} %` : zero ? "0" : number(10 ** raw);
      input.parentElement.querySelector("output").textContent = shown;
    }
    const body = document.getElementById("advise-lines");
    body.replaceChildren(...answer(run).map((cells) => {
      const line = document.createElement("tr");
      cells.forEach((text, index) => {
        const cell = document.createElement(index ? "td" : "th");
        if (!index) cell.scope = "row";
        cell.textContent = text;
        line.append(cell);
      });
      return line;
    }));
    document.getElementById("advise-charts").hidden = !adam;
    if (!adam) return;
    const paths = [norms(run, run.decay, 200), norms(run, 0, 200)];
    for (const [id, pick] of [["norm", (p) => p[2]], ["rate", (p) => p[1] / p[2]]]) {
      const [own, none] = chart(paths, pick);
      document.getElementById(`advise-${id}-own`).setAttribute("points", own);
      document.getElementById(`advise-${id}-none`).setAttribute("points", none);
    }
    const step = arrows(run), x = 10 + 60, up = 60 * step.update, back = 60 * step.decay;
    const line = (id, x1, y1, x2, y2) => {
      const drawn = document.getElementById(id);
      Object.entries({ x1, y1, x2, y2 }).forEach(([key, v]) => drawn.setAttribute(key, v.toFixed(2)));
    };
    line("advise-update", x, 35, x, 35 - up);
    line("advise-decay", x, 35 - up, x - back, 35 - up);
    line("advise-result", 10, 35, x - back, 35 - up);
    show("advise-factor", `update and decay drawn ${number(step.factor)} times too large`);
  };
  form.addEventListener("input", refresh);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  refresh();
}

if (typeof module !== "undefined") module.exports = { answer, arrows, chart, learningRate, norms, number, roundedAway, totalRate };
