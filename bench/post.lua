-- What wrk sends, and how it says what it saw. The file named by BENCH_BODIES holds one body a line;
-- they are sent in turn. The result is one line of JSON behind the word "bench".

local requests = {}
local turn = 0

function init(_)
   wrk.method = "POST"
   wrk.headers["Content-Type"] = "application/json"
   local name = assert(os.getenv("BENCH_BODIES"), "BENCH_BODIES is not set")
   for body in io.lines(name) do
      requests[#requests + 1] = wrk.format(nil, nil, nil, body)
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      'bench {"requests":%d,"micros":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d,' ..
      '"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(90),
      latency:percentile(99), latency.max,
      errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
