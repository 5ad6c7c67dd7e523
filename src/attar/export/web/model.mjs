// The exported model in a browser, or in Node: text in, answers out. Nothing leaves the machine.

const whole = (numbers) => BigInt64Array.from(numbers, BigInt);

/** Opens the model that `page` (page.json) describes; `session` is ONNX Runtime's. */
export function open(ort, session, tokenizer, page) {
  const ids = (tokens) => new ort.Tensor("int64", whole(tokens), [1, tokens.length]);
  const ones = (count) => new ort.Tensor("int64", new BigInt64Array(count).fill(1n), [1, count]);

  /** A text's tokens, as many as fit. */
  function tokens(text) {
    const found = Array.from(tokenizer.encode(text).ids, Number);
    if (found.length <= page.context) return found;
    return [...found.slice(0, page.context - 1), found[found.length - 1]];
  }

  /** The outputs of an encoder: a row of numbers for the text, or for each of its tokens. */
  async function encode(text) {
    const given = tokens(text);
    const { logits } = await session.run({ input_ids: ids(given), attention_mask: ones(given.length) });
    return { given, rows: rowsOf(logits) };
  }

  function empty() {
    const cache = {};
    page.heads.forEach(([heads, size], layer) => {
      for (const kind of ["key", "value"]) {
        cache[`past_key_values.${layer}.${kind}`] =
          new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, size]);
      }
    });
    return cache;
  }

  /** The likeliest next tokens, one after another, until the model ends or `limit` is reached. */
  async function* generate(prompt, limit) {
    let cache = empty(), next = prompt, done = 0;
    for (let count = 0; count < limit && done + next.length <= page.context; count++) {
      done += next.length;
      const found = await session.run({ input_ids: ids(next), attention_mask: ones(done), ...cache });
      cache = {};
      for (const name of Object.keys(found)) {
        if (name !== "logits") cache[name.replace("present", "past_key_values")] = found[name];
      }
      const rows = rowsOf(found.logits);
      const token = likeliest(rows[rows.length - 1], 1)[0].index;
      if (page.ends.includes(token)) return;
      yield token;
      next = [token];
    }
  }

  /** The tokens of a question as the model's own chat template puts it. */
  function asked(text) {
    const special = { add_special_tokens: page.before === "" && page.after === "" };
    return Array.from(tokenizer.encode(page.before + text + page.after, special).ids, Number);
  }

  const told = (tokens) => tokenizer.decode(tokens, { skip_special_tokens: true });
  return { encode, generate, asked, told };
}

function rowsOf(tensor) {
  const width = tensor.dims[tensor.dims.length - 1], rows = [];
  for (let start = 0; start < tensor.data.length; start += width) {
    rows.push(tensor.data.subarray(start, start + width));
  }
  return rows;
}

/** The largest numbers of a row, with their shares of the whole (softmax), the largest first. */
export function likeliest(row, count) {
  let most = -Infinity;
  for (const value of row) most = Math.max(most, value);
  let sum = 0;
  for (const value of row) sum += Math.exp(value - most);
  if (count === 1) return [{ index: row.indexOf(most), share: 1 / sum }];
  return Array.from(row, (value, index) => ({ index, share: Math.exp(value - most) / sum }))
    .sort((a, b) => b.share - a.share)
    .slice(0, count);
}
