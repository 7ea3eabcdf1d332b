// What both scripts for transformers.js ask of a model: continuations of prompts, and the mean loss of windows of ids.
export async function answers({ model, tokenizer, Tensor }, { prompts, windows }, count) {
  const given = (ids) => ({
    input_ids: new Tensor('int64', BigInt64Array.from(ids.map(BigInt)), [1, ids.length]),
    attention_mask: new Tensor('int64', new BigInt64Array(ids.length).fill(1n), [1, ids.length]),
  });
  const found = [];
  for (const [text, ids] of prompts) {
    const made = await model.generate({ ...given(ids), max_new_tokens: count, do_sample: false });
    const { input_ids: own } = await tokenizer(text);
    found.push([[...own.data].map(Number), [...made.data].map(Number).slice(ids.length)]);
  }
  const losses = [];
  for (const ids of windows) losses.push(meanLoss(ids, (await model(given(ids))).logits));
  return { found, loss: losses.length ? losses.reduce((one, other) => one + other) / losses.length : null };
}

// The mean loss of the tokens that follow another in a window, from logits [1, n, V].
function meanLoss(ids, { dims, data }) {
  let total = 0;
  for (let place = 0; place + 1 < ids.length; place++) {
    const row = data.subarray(place * dims[2], (place + 1) * dims[2]);
    let highest = -Infinity, sum = 0;
    for (const value of row) if (value > highest) highest = value;
    for (const value of row) sum += Math.exp(value - highest);
    total += Math.log(sum) + highest - row[ids[place + 1]];
  }
  return total / (ids.length - 1);
}
