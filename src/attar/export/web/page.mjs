import { likeliest, open } from "./model.mjs";

const $ = (id) => document.getElementById(id);
const LIMIT = 256;
let stopped = false;

async function json(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is not there`);
  return answer.json();
}

async function libraries() {
  try {
    return await Promise.all([import("ort"), import("tokenizers")]);
  } catch {
    throw new Error("ONNX Runtime and the tokenizer's reader are not in lib/. README-web.md says how to put them there");
  }
}

async function load() {
  const [ort, { Tokenizer }] = await libraries();
  const page = await json("page.json");
  const tokenizer = new Tokenizer(await json("tokenizer.json"), await json("tokenizer_config.json"));
  const externalData = page.data.map((path) => ({ path, data: path }));
  const session = await ort.InferenceSession.create("model.onnx", { externalData, executionProviders: ["wasm"] });
  return { page, tokenizer, model: open(ort, session, tokenizer, page) };
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

async function answer({ page, tokenizer, model }, text) {
  const start = performance.now(), seconds = () => (performance.now() - start) / 1000;
  if (page.task === "causal-lm") {
    const written = [];
    for await (const token of model.generate(model.asked(text), LIMIT)) {
      written.push(token);
      $("answer").textContent = model.told(written);
      $("facts").textContent = `${written.length} tokens, ${(written.length / seconds()).toFixed(1)} tokens/s`;
      await new Promise((done) => setTimeout(done));
      if (stopped) break;
    }
    return;
  }
  const { given, rows } = await model.encode(text);
  const masked = page.task === "masked-lm" ? given.flatMap((id, place) => (id === page.mask ? [place] : [])) : [0];
  const lines = masked.map((place) =>
    likeliest(rows[place], 5).map(({ index, share }) => `${page.labels?.[index] ?? tokenizer.id_to_token(index)}  ${percent(share)}`).join("\n"));
  $("answer").textContent = lines.join("\n\n") || `Put ${page.mask_token} where a word is to be guessed.`;
  $("facts").textContent = `${given.length} tokens, ${seconds().toFixed(3)} s`;
}

async function main() {
  const loaded = await load();
  $("facts").textContent = "Ready.";
  $("go").disabled = false;
  $("stop").onclick = () => { stopped = true; };
  $("form").onsubmit = async (event) => {
    event.preventDefault();
    stopped = false;
    $("go").disabled = true;
    $("stop").disabled = false;
    $("trouble").textContent = "";
    await answer(loaded, $("text").value).catch(trouble);
    $("go").disabled = false;
    $("stop").disabled = true;
  };
}

function trouble(error) {
  $("trouble").textContent = error.message ?? String(error);
}

main().catch((error) => {
  $("facts").textContent = "";
  trouble(error);
});
