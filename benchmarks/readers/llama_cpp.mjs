// Continue prompts by llama.cpp, through node-llama-cpp: `FILE PROMPTS COUNT OUT`.
import fs from 'fs';
import { getLlama } from 'node-llama-cpp';

const [file, prompts, count, out] = process.argv.slice(2);
const llama = await getLlama({ build: 'never', gpu: false, logLevel: 'error' });
const model = await llama.loadModel({ modelPath: file });
const found = [];
for (const [text, ids] of JSON.parse(fs.readFileSync(prompts)).prompts) {
  const context = await model.createContext({ contextSize: 512, sequences: 1, threads: 1 });
  const tokens = context.getSequence().evaluate(ids, { temperature: 0, yieldEogToken: true });
  const made = [];
  while (made.length < +count) {
    const { value, done } = await tokens.next();
    if (done) break;
    made.push(Number(value));
    if (model.isEogToken(value)) break;
  }
  const bos = model.tokens.shouldPrependBosToken ? [Number(model.tokens.bos)] : [];
  found.push([[...bos, ...[...model.tokenize(text, false)].map(Number)], made]);
}
fs.writeFileSync(out, JSON.stringify({ found, loss: null })); // llama_cpp_library.py asks its library for that
process.exit(0); // contexts are not disposed of one by one: that waits for their generators
