"""The training primitives alone, without runs, episodes or a journal: a policy gradient on sums, in one loop.

python examples/primitives.py
"""

import anyio

from sparring import Adam, Datum, ImportanceSampling, Lora, SamplingParams, token_mean
from sparring.backend.local import LocalBackend

MODEL = "smollm2-135m-instruct"


async def main(steps: int = 50, state: str = "final") -> None:
    async with LocalBackend() as backend:
        model = await backend.create_model(MODEL, lora=Lora(rank=32))
        for step in range(steps):
            sampler, data = await model.sampler(), []
            for a in range(8):
                prompt = model.renderer.prompt([{"role": "user", "content": f"What is {a} + {step % 10}?"}])
                samples = await sampler.sample(prompt, SamplingParams(max_tokens=16), n=8)
                rewards = [float(str(a + step % 10) in model.renderer.text(s.tokens)) for s in samples]
                mean = sum(rewards) / len(rewards)
                data += [Datum.completion(prompt, s, advantage=r - mean) for s, r in zip(samples, rewards)]
            trained = model.forward_backward(token_mean(data), ImportanceSampling())  # order = order of the calls
            stepped = model.optim_step(Adam(learning_rate=1e-4))
            print(step, (await trained).metrics, (await stepped).metrics)
        print("saved", await model.save_state(state))


if __name__ == "__main__":
    anyio.run(main)
