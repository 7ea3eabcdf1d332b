// Time llama.cpp, through node-llama-cpp: `FILE PROMPTS COUNT THREADS OUT`. The first prompt warms up.
import fs from 'fs';
import { getLlama } from 'node-llama-cpp';

const [file, prompts, count, threads, out] = process.argv.slice(2);
const llama = await getLlama({ build: 'never', gpu: false, logLevel: 'error', maxThreads: +threads });
const model = await llama.loadModel({ modelPath: file });
const found = { prefill: [], decode: [] };
for (const ids of JSON.parse(fs.readFileSync(prompts))) {
  const context = await model.createContext({ contextSize: 512, sequences: 1, threads: +threads });
  const tokens = context.getSequence().evaluate(ids, { temperature: 0, yieldEogToken: true });
  const start = performance.now();
  await tokens.next();
  const middle = performance.now();
  for (let made = 0; made < +count; made++) await tokens.next();
  found.prefill.push((middle - start) / 1000);
  found.decode.push((performance.now() - middle) / 1000);
  await context.dispose().catch(() => {});
}
const kept = Object.fromEntries(Object.entries(found).map(([name, seconds]) => [name, seconds.slice(1)]));
fs.writeFileSync(out, JSON.stringify(kept));
process.exit(0);
