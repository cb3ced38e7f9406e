// Requests to the model: sent, followed as they go, and cancelled when nobody waits any more.

export const csrf = () => document.querySelector("meta[name=csrf]").content;

// Run an operation. `onState` hears in words how it goes; `signal` cancels. Resolves to {rows, notes, more}.
export async function compute(operation, given, { onState = () => {}, signal } = {}) {
  onState("sending …");
  const response = await fetch(`/compute/${operation}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream", "X-CSRF-Token": csrf() },
    body: JSON.stringify(given),
    signal,
  });
  if (!response.ok) throw new Error(await reason(response));
  for await (const job of events(response.body)) {
    if (job.state === "done") return job.result;
    if (job.state === "failed" || job.state === "cancelled") throw new Error(job.error);
    onState(job.state === "waiting" ? `waits behind ${job.ahead}` : `${job.progress || "running"} …`);
  }
  throw new Error("the server ended the connection; ask again");
}

async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error;
  } catch {
    return text.trim() || `the server answered ${response.status}`;
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

// Let a form compute: one request at a time, with its state beside it and a button that cancels.
export function computing(form, run) {
  const status = form.parentElement.querySelector("[data-job]") ?? document.querySelector("[data-job]");
  const cancel = form.querySelector("[data-cancel]");
  let controller = null;
  const go = async (...given) => {
    controller?.abort();
    const mine = (controller = new AbortController());
    if (cancel) cancel.hidden = false;
    status.classList.remove("failed");
    try {
      await run({ onState: (text) => (status.textContent = text), signal: mine.signal }, ...given);
      status.textContent = "";
    } catch (error) {
      if (mine !== controller) return;
      status.classList.toggle("failed", error.name !== "AbortError");
      status.textContent = error.name === "AbortError" ? "cancelled" : error.message;
    } finally {
      if (mine === controller && cancel) cancel.hidden = true;
    }
  };
  cancel?.addEventListener("click", () => controller?.abort());
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return go;
}
