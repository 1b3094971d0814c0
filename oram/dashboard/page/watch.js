"use strict";
// Frames come as server-sent events; what is drawn is always the newest one. Nothing from the server is ever parsed as HTML.

const $ = (id) => document.getElementById(id);
const token = document.querySelector("meta[name=token]").content;
const still = matchMedia("(prefers-reduced-motion: reduce)");
const STEPS = ["<¼", "¼", "½ to 2", "2", "4", "8", "16+"];
const SMOOTH = 2; // touches added to each cell and to its share, so that the first few say little
const WHAT = {
  plain: "A grid of all records. One slot each: reading it reads its slot.",
  path: "The tree: a row is a level, the root above, and a cell is a bucket. Each access reads one path and writes it back.",
  ring: "The tree: a row is a level, the root above, and a cell is a bucket. Each access reads one slot of each bucket of a path; now and then one is written anew.",
  cuckoo: "The two tables, a and b, of each level. Each access reads a cell of both where the level is in use; rebuilds, which follow a timetable, are not drawn.",
  linear: "All pages. Each access reads and writes every one of them.",
};
let choices = null, frame = null, drawn = true;

// --- switches

async function change(what) {
  try {
    const answer = await fetch("settings", {
      method: "POST",
      headers: { "content-type": "application/json", "x-oram-token": token },
      body: JSON.stringify(what),
    });
    say(answer.ok ? "" : (await answer.json()).error);
  } catch {
    say("The server does not answer.");
  }
}

function say(problem) {
  text($("problem"), problem);
}

function options(select, names, texts = names) {
  select.replaceChildren(...names.map((name, i) => {
    const option = document.createElement("option");
    option.value = name;
    option.textContent = texts[i];
    return option;
  }));
}

for (const name of ["scheme", "workload", "leak"]) $(name).addEventListener("change", (e) => change({ [name]: e.target.value }));
$("rate").addEventListener("change", (e) => change({ rate: Number(e.target.value) }));
$("leaking").addEventListener("click", () => frame && change({ leaking: !frame.settings.leaking }));
$("paused").addEventListener("click", () => frame && change({ paused: !frame.settings.paused }));
$("reset").addEventListener("click", () => change({ reset: true }));

function showSwitches() {
  const { settings } = frame, leaks = choices.leaks[settings.scheme];
  if ($("leak").dataset.scheme !== settings.scheme) {
    options($("leak"), leaks.map((leak) => leak.name));
    $("leak").dataset.scheme = settings.scheme;
  }
  for (const name of ["scheme", "workload", "rate", "leak"]) {
    if (settings[name] !== null && $(name).value !== String(settings[name])) $(name).value = settings[name];
  }
  $("leak").disabled = $("leaking").disabled = !leaks.length;
  set($("leaking"), "aria-checked", settings.leaking);
  text($("leaking").querySelector("span"), settings.leaking ? "on" : "off");
  set($("paused"), "aria-pressed", settings.paused);
  text($("paused"), settings.paused ? "Go on" : "Pause");
  const leak = leaks.find((each) => each.name === settings.leak);
  const where = leak && leak.workload && leak.workload !== settings.workload ? ` It shows under the workload "${leak.workload}", and perhaps under this one.` : "";
  text($("about-leak"), leak ? `${settings.leaking ? "Leaking" : "The leak, if turned on"}: ${leak.says}.${where}` : "There is no leak of this scheme to turn on.");
  text($("about-workload"), choices.workloads.find((each) => each.name === settings.workload).says);
}

function set(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

// --- drawing

function canvas(element) {
  const scale = devicePixelRatio || 1, width = element.clientWidth, height = element.clientHeight;
  if (element.width !== Math.round(width * scale) || element.height !== Math.round(height * scale)) {
    element.width = Math.round(width * scale);
    element.height = Math.round(height * scale);
  }
  const pen = element.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { heat: STEPS.map((_, i) => of(`--h${i}`)), soft: of("--soft"), ink: of("--ink"), accent: of("--accent"), mark: of("--mark"), alarm: of("--alarm") };
}

function step(touched, even) {
  const share = Math.log2((touched + SMOOTH) / (even + SMOOTH));
  return share < -2 ? 0 : share < -1 ? 1 : share < 1 ? 2 : Math.min(6, Math.floor(share) + 2);
}

function heat(element, side, ink) {
  const { pen, width, height } = canvas(element), labelled = !side.together, left = labelled ? 26 : 0;
  const whole = side.touched.reduce((a, b) => a + b, 0), cells = side.touched.length;
  const tall = height / side.rows.length, latest = new Set(still.matches ? [] : side.latest);
  let first = 0, hottest = 0;
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  side.rows.forEach(([label, n], row) => {
    const here = side.together ? whole / cells : side.touched.slice(first, first + n).reduce((a, b) => a + b, 0) / n;
    const wide = (width - left) / n, y = row * tall;
    if (labelled) {
      pen.fillStyle = ink.soft;
      pen.fillText(label, 0, y + tall / 2);
    }
    for (let i = 0; i < n; i++) {
      const touched = side.touched[first + i];
      const gap = wide > 5 ? 1 : wide > 2.2 ? 0.35 : 0;
      pen.fillStyle = ink.heat[step(touched, here)];
      pen.fillRect(left + i * wide, y, wide - gap, tall - 1);
      if (here >= 1) hottest = Math.max(hottest, touched / here);
    }
    pen.fillStyle = ink.mark;
    for (let i = 0; i < n; i++) {
      if (latest.has(first + i)) pen.fillRect(left + i * wide, y + tall - 4, Math.max(2, wide - 1), 3);
    }
    first += n;
  });
  set(element, "aria-label", `Heat map of ${side.title}: the hottest cell has ${hottest.toFixed(1)} times its even share of ${whole} touches`);
}

function order(element, values, places, colour) {
  const { pen, width, height } = canvas(element), wide = width / 300;
  pen.fillStyle = colour;
  values.forEach((value, i) => {
    if (value >= 0) pen.fillRect(i * wide, (height - 4) * (1 - (value % places) / Math.max(1, places - 1)), Math.max(2, wide - 1), 3);
  });
}

function asked(values, records, ink) {
  order($("asked"), values.map((value) => (value < records ? value : -1)), records, ink.ink);
  const element = $("asked"), pen = element.getContext("2d");
  pen.strokeStyle = ink.alarm; // what is not there
  values.forEach((value, i) => {
    if (value >= records) pen.strokeRect((i * element.clientWidth) / 300 + 0.5, (element.clientHeight - 4) * (1 - (value - records) / (records - 1)) + 0.5, 2, 2);
  });
}

// --- tests

const small = (p) => (p === 0 ? "0" : p < 1e-15 ? "< 1e-15" : p < 0.001 ? p.toExponential(0) : p.toPrecision(2));

function line(test) {
  const row = document.createElement("tr");
  const cells = ["", "n", "n", "n", ""].map((kind) => {
    const cell = document.createElement("td");
    cell.className = kind;
    row.append(cell);
    return cell;
  });
  const name = document.createElement("span"), null_ = document.createElement("small");
  name.textContent = test.name + (test.told ? " †" : "");
  null_.textContent = test.null;
  cells[0].append(name, null_);
  return row;
}

function tests(body, list) {
  if (body.dataset.names !== list.map((test) => test.name).join()) {
    body.replaceChildren(...list.map(line));
    body.dataset.names = list.map((test) => test.name).join();
  }
  list.forEach((test, i) => {
    const row = body.rows[i], exact = test.level === 0;
    set(row, "data-state", test.state);
    text(row.cells[1], test.seen.toLocaleString("en"));
    text(row.cells[2], exact ? (test.statistic ? `${test.statistic.toLocaleString("en")} odd` : "none odd") : test.p_value === null ? "" : small(test.p_value));
    text(row.cells[3], exact ? "exact" : test.level === null ? "" : small(test.level));
    text(row.cells[4], test.state === "alarm" ? `alarm at ${test.alarm.toLocaleString("en")}` : test.state);
  });
}

function card(id, side, ink) {
  const element = $(id);
  const state = side.alarm ? "alarm" : side.tests.some((test) => test.state === "waiting") ? "waiting" : "quiet";
  const loud = side.tests.filter((test) => test.state === "alarm").length;
  text(element.querySelector("h2"), side.title + (id === "oblivious" && frame.settings.leaking ? ", leaking" : ""));
  text(element.querySelector(".badge"), state === "alarm" ? `alarm: ${loud} of ${side.tests.length} tests` : state === "quiet" ? `quiet: ${side.tests.length} tests` : "waiting for observations");
  text(element.querySelector(".what"), WHAT[id === "plain" ? "plain" : frame.settings.scheme]);
  text(element.querySelector("h3"), side.place ? `The ${side.place} of each access, the last 300 in order` : "Nothing tells one access from another.");
  element.querySelector(".order").hidden = !side.place;
  set(element.querySelector(".order"), "aria-label", `The ${side.place} of each of the last accesses`);
  heat(element.querySelector(".heat"), side, ink);
  order(element.querySelector(".order"), side.recent, side.places, ink.accent);
  tests(element.querySelector("tbody"), side.tests);
  set(element, "data-run", frame.run);
  set(element, "data-state", state);
  return [state, loud];
}

function draw() {
  drawn = true;
  if (!frame || !choices) return;
  const ink = colours();
  showSwitches();
  asked(frame.asked, frame.records, ink);
  const states = ["plain", "oblivious"].map((id, i) => card(id, frame.sides[i], ink)[0]);
  text($("alpha"), Math.round(1 / frame.alpha).toLocaleString("en"));
  const live = frame.failed ? `the store failed (${frame.failed}): reset to go on` : frame.over ? "over: reset to go on" : frame.settings.paused ? "paused" : "live";
  const found = { alarm: "The oblivious store has raised an alarm.", quiet: "The oblivious store is quiet.", waiting: "Waiting for observations." };
  text($("news"), `Run ${frame.run}, ${live}. ${found[states[1]]}`); // read out, so it changes with what happens and not with each frame
  text($("count"), `${frame.accesses.toLocaleString("en")} accesses`);
  set($("page"), "data-run", frame.run);
}

function soon() {
  if (!drawn) return;
  drawn = false;
  requestAnimationFrame(draw);
}

// --- begin

for (const id of ["plain", "oblivious"]) {
  const element = $(id);
  element.append($("side").content.cloneNode(true));
  element.querySelector("h2").id = `${id}-title`;
  element.querySelector(".legend").append("Touched, times an even share:", ...STEPS.map((name, i) => {
    const entry = document.createElement("span"), swatch = document.createElement("i");
    swatch.className = `k${i}`;
    entry.append(swatch, name);
    return entry;
  }));
}

const events = new EventSource("events");
events.addEventListener("choices", (event) => {
  choices = JSON.parse(event.data);
  options($("scheme"), choices.schemes);
  options($("workload"), choices.workloads.map((each) => each.name));
  options($("rate"), choices.rates.map(String));
  $("leak").dataset.scheme = "";
});
events.addEventListener("frame", (event) => {
  frame = JSON.parse(event.data);
  soon();
});
events.addEventListener("open", () => say(""));
events.addEventListener("error", () => say("Not connected: the server has ended, or has too many viewers."));
addEventListener("resize", soon);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
