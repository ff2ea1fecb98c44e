// A worker in Node, without packages: `retinue worker check -- node examples/workers/node_worker.mjs`.
// The protocol is in docs/protocol.md. stdout carries frames and nothing else; log to stderr.

import { randomUUID } from "node:crypto";

const VERSION = "1.0";
const MOST_BYTES = 1 << 20;

class Fault extends Error {
  constructor(code, type, message, details = {}, retryable = false) {
    super(message);
    Object.assign(this, { code, type, details, retryable });
  }
}

const invalid = (message, details) => new Fault("E_INVALID_INPUT", "validation", message, details);

// -- the agents: (input, invocation) => result ---------------------------------------------------

const agents = {
  echo: async (input) => input,

  async tell(input, invocation) {
    let story = "";
    for (const word of ["Once", " upon", " a time"]) {
      invocation.text(word);
      story += word;
    }
    return story;
  },

  async slow(input, invocation) {
    const seconds = input?.seconds ?? 1;
    await invocation.wait((done) => setTimeout(done, seconds * 1000));
    return `slept ${seconds} s`;
  },

  async ask(input, invocation) {
    return { answer: await invocation.ask(input?.prompt ?? "May I?") };
  },

  async fail() {
    throw new Error("this agent always fails");
  },
};

// -- writing -------------------------------------------------------------------------------------

function send(type, correlationId, payload) {
  const messageId = randomUUID();
  const frame = {
    protocol_version: VERSION,
    message_id: messageId,
    correlation_id: correlationId === undefined ? messageId : correlationId,
    timestamp: new Date().toISOString(),
    type,
    payload,
  };
  process.stdout.write(JSON.stringify(frame) + "\n");
}

function sendError(correlationId, error) {
  const fault = error instanceof Fault ? error : new Fault("E_INTERNAL", "internal", String(error));
  send("error", correlationId, {
    error_type: fault.type,
    error_code: fault.code,
    message: fault.message,
    retryable: fault.retryable,
    details: fault.details,
  });
}

// -- one invocation ------------------------------------------------------------------------------

const running = new Map(); // message_id -> Invocation
const answered = new Set(); // input_ids that had their answer
let stopping = false;

class Invocation {
  constructor(messageId, payload) {
    this.messageId = messageId;
    this.name = payload.agent_name;
    this.input = payload.input ?? null;
    this.options = payload.options ?? {};
    this.invokeId = payload.metadata?.invoke_id ?? randomUUID();
    this.began = Date.now();
    this.questions = new Map();
    this.said = "";
    this.streamed = false;
    this.over = false;
    this.interrupted = new Promise((_, reject) => (this.interrupt = reject));
    this.interrupted.catch(() => {});
  }

  async perform() {
    this.left = this.options.timeout_ms ?? 30_000;
    this.goOn();
    try {
      const { stream_node: node, capability } = this.options;
      if (node && node !== this.name) throw invalid(`agent ${this.name} has no node ${node}`);
      if (capability && capability !== this.name) {
        throw invalid(`agent ${this.name} has no capability ${capability}`);
      }
      const result = await Promise.race([
        agents[this.name](this.input, this),
        this.interrupted,
      ]);
      if (this.streamed) this.chunk("", true);
      send("response", this.messageId, {
        status: "success",
        result: result ?? null,
        metadata: { invoke_id: this.invokeId, duration_ms: Date.now() - this.began, tokens_used: 0 },
      });
    } catch (error) {
      sendError(this.messageId, error);
    } finally {
      this.standStill();
      this.over = true;
      running.delete(this.messageId);
      if (stopping && running.size === 0) process.exit(0);
    }
  }

  // Its time: stands still while a person is asked.

  goOn() {
    this.since = Date.now();
    this.timer = setTimeout(() => {
      const limit = this.options.timeout_ms ?? 30_000;
      const message = `Agent invocation timed out after ${limit}ms`;
      this.interrupt(new Fault("E_TIMEOUT", "timeout", message, { elapsed_ms: limit }, true));
    }, this.left);
  }

  standStill() {
    clearTimeout(this.timer);
    this.left -= Date.now() - this.since;
  }

  text(chunk) {
    if (this.options.stream && !this.over) this.chunk(chunk, false);
  }

  chunk(chunk, isComplete) {
    this.streamed = true;
    this.said += chunk;
    const payload = { node_name: this.name, chunk, is_complete: isComplete, is_reset: false };
    if (this.options.accumulated !== false) payload.accumulated = this.said;
    send("stream", this.messageId, payload);
  }

  wait(begin) {
    return Promise.race([new Promise(begin), this.interrupted]);
  }

  async ask(prompt) {
    const inputId = randomUUID();
    send("control", this.messageId, {
      operation: "human_input.request",
      invoke_id: this.invokeId,
      input_id: inputId,
      prompt,
    });
    this.standStill();
    const answer = await this.wait((done) => this.questions.set(inputId, done));
    this.goOn();
    return answer;
  }
}

// -- reading -------------------------------------------------------------------------------------

function invoke(messageId, payload) {
  if (stopping) {
    throw new Fault("E_SHUTTING_DOWN", "internal", "shutting down: no new work", {}, true);
  }
  if (!Object.hasOwn(agents, payload.agent_name ?? "")) {
    throw new Fault("E_AGENT_NOT_FOUND", "not_found", `there is no agent ${payload.agent_name}`);
  }
  if (running.has(messageId)) throw invalid(`request ${messageId} is in progress`);
  const invocation = new Invocation(messageId, payload);
  running.set(messageId, invocation);
  invocation.perform();
}

function provide(messageId, { invoke_id: invokeId, input_id: inputId, value }) {
  const asking = [...running.values()].find((one) => one.invokeId === invokeId);
  const answer = asking?.questions.get(inputId);
  if (!answer) {
    throw invalid(answered.has(inputId) ? "it was answered already" : "there is no such question");
  }
  asking.questions.delete(inputId);
  answered.add(inputId);
  send("response", messageId, { status: "success", result: null });
  answer(value);
}

function stop(timeoutMs) {
  stopping = true;
  if (running.size === 0) process.exit(0);
  setTimeout(() => {
    const over = new Fault("E_CANCELLED", "internal", "the worker is shutting down");
    for (const one of running.values()) one.interrupt(over);
    setImmediate(() => process.exit(0));
  }, timeoutMs ?? 5000);
}

function order(messageId, payload) {
  if (payload.operation === "ping") {
    send("response", messageId, { status: "pong", timestamp: new Date().toISOString() });
  } else if (payload.operation === "shutdown") {
    send("response", messageId, { status: "shutting_down" });
    stop(payload.timeout_ms);
  } else if (payload.operation === "cancel") {
    const there = running.get(payload.request_id);
    send("response", messageId, { status: there ? "cancelling" : "not_running" });
    there?.interrupt(new Fault("E_CANCELLED", "internal", payload.reason ?? "cancelled"));
  } else if (payload.operation !== undefined) {
    throw new Fault("E_UNKNOWN_OPERATION", "validation", `no operation ${payload.operation}`);
  }
}

function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function take(line) {
  if (line.trim() === "") return;
  let messageId = null;
  try {
    let frame;
    try {
      frame = JSON.parse(line);
    } catch (error) {
      throw invalid(`the line is not JSON: ${error.message}`);
    }
    if (!isObject(frame)) throw invalid("the line is no JSON object");
    if (typeof frame.message_id === "string") messageId = frame.message_id;
    let payload = frame.payload;
    if (!isObject(payload)) throw invalid("payload is missing");
    if (isObject(payload.payload) && payload.operation === undefined) payload = payload.payload;
    if (!/^1(\.|$)/.test(frame.protocol_version ?? VERSION)) {
      throw invalid(`protocol_version is not supported; this is ${VERSION}`);
    }
    if (frame.type === "control") order(messageId, payload);
    else if (frame.type === "request") {
      if (!messageId) throw invalid("a request needs a message_id");
      if (payload.operation === "agent.invoke") invoke(messageId, payload);
      else if (payload.operation === "human_input.provide") provide(messageId, payload);
      else throw new Fault("E_UNKNOWN_OPERATION", "validation", `no operation ${payload.operation}`);
    } else if (!["response", "stream", "error"].includes(frame.type)) {
      throw invalid(`there is no frame type ${frame.type}`);
    }
  } catch (error) {
    sendError(messageId, error);
  }
}

let rest = [];
let size = 0;
process.stdin.on("data", (chunk) => {
  for (;;) {
    const end = chunk.indexOf(10);
    const part = end < 0 ? chunk : chunk.subarray(0, end);
    size += part.length;
    if (size < MOST_BYTES) rest.push(part);
    if (end < 0) return;
    if (size < MOST_BYTES) take(Buffer.concat(rest).toString("utf8"));
    else sendError(null, new Fault("E_TOO_LARGE", "validation", `the line has ${size} bytes`));
    rest = [];
    size = 0;
    chunk = chunk.subarray(end + 1);
  }
});
process.stdin.on("end", () => stop());

send("control", undefined, {
  status: "ready",
  module_name: "node_worker",
  agents: Object.keys(agents),
});
