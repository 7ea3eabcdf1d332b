// Continue prompts by transformers.js: `FOLDER PROMPTS COUNT OUT`.
import fs from 'fs';
import path from 'path';
import { AutoModelForCausalLM, AutoTokenizer, Tensor, env } from '@huggingface/transformers';

const [folder, prompts, count, out] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + '/';
const tokenizer = await AutoTokenizer.from_pretrained(path.basename(folder));
const model = await AutoModelForCausalLM.from_pretrained(path.basename(folder));
const found = [];
for (const [text, ids] of JSON.parse(fs.readFileSync(prompts))) {
  const input_ids = new Tensor('int64', BigInt64Array.from(ids.map(BigInt)), [1, ids.length]);
  const attention_mask = new Tensor('int64', new BigInt64Array(ids.length).fill(1n), [1, ids.length]);
  const made = await model.generate({ input_ids, attention_mask, max_new_tokens: +count, do_sample: false });
  const { input_ids: own } = await tokenizer(text);
  found.push([[...own.data].map(Number), [...made.data].map(Number).slice(ids.length)]);
}
fs.writeFileSync(out, JSON.stringify(found));
