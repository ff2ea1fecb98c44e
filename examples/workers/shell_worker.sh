#!/bin/sh
# A worker in POSIX shell: `retinue worker check -- sh examples/workers/shell_worker.sh`.
#
# It has one agent, echo, and does the least that docs/protocol.md asks of a worker. JSON is read by
# the awk program below, which prints what the shell needs to know, one value per line, as JSON.
# Each request runs in a process of its own, so that a ping is answered meanwhile.

export LC_ALL=C

parser='
# Prints the text of the value that begins at s[at], and moves at behind it. No value: stops.
function space() { while (at <= n && index(" \t\r\n", substr(s, at, 1))) at++ }
function value(  c, from) {
    space(); from = at; c = substr(s, at, 1)
    if (c == "{") object(0)
    else if (c == "[") list()
    else if (c == "\"") text()
    else if (match(substr(s, at, 40), /^(true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?)/))
        at += RLENGTH
    else bad()
    return substr(s, from, at - from)
}
function text(  c) {
    for (at++; at <= n; at++) {
        c = substr(s, at, 1)
        if (c == "\\") at++
        else if (c == "\"") { at++; return }
        else if (c < " ") bad()
    }
    bad()
}
function list() {
    at++; space()
    if (substr(s, at, 1) == "]") { at++; return }
    for (;;) {
        value(); space()
        if (substr(s, at, 1) == "]") { at++; return }
        if (substr(s, at++, 1) != ",") bad()
    }
}
# With a name, the members of the object are kept in found[name, member].
function object(name,  key, from) {
    at++; space()
    if (substr(s, at, 1) == "}") { at++; return }
    for (;;) {
        space(); from = at
        if (substr(s, at, 1) != "\"") bad()
        text(); key = substr(s, from + 1, at - from - 2); space()
        if (substr(s, at++, 1) != ":") bad()
        from = value()
        if (name) found[name, key] = from
        space()
        if (substr(s, at, 1) == "}") { at++; return }
        if (substr(s, at++, 1) != ",") bad()
    }
}
function bad() { print "bad"; stopped = 1; exit }
function members(name, from) {
    s = from; n = length(s); at = 1; space()
    if (substr(s, at, 1) != "{") bad()
    object(name); space()
    if (at <= n) bad()
}
{ line = line $0 }
END {
    if (stopped) exit
    members("frame", line)
    members("payload", found["frame", "payload"])
    if (substr(found["payload", "payload"], 1, 1) == "{" && !(("payload", "operation") in found))
        members("payload", found["payload", "payload"])
    if (substr(found["payload", "metadata"], 1, 1) == "{")
        members("metadata", found["payload", "metadata"])
    print "frame"
    print found["frame", "type"]
    print found["frame", "message_id"]
    print found["frame", "protocol_version"]
    print found["payload", "operation"]
    print found["payload", "agent_name"]
    print found["metadata", "invoke_id"]
    print ("payload", "input") in found ? found["payload", "input"] : "null"
}'

new_id() {
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n' |
        sed 's/\(........\)\(....\).\(...\).\(...\)\(............\)/\1-\2-4\3-8\4-\5/'
}

# send TYPE CORRELATION PAYLOAD; the correlation is JSON ("id" or null); "" begins an exchange.
# Several processes write to one pipe: a lock keeps long lines whole.
send() {
    id=\"$(new_id)\"
    time=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    until mkdir "$lock" 2>/dev/null; do sleep 0.01; done
    printf '{"protocol_version":"1.0","message_id":%s,"correlation_id":%s,' "$id" "${2:-$id}"
    printf '"timestamp":"%s","type":"%s","payload":%s}\n' "$time" "$1" "$3"
    rmdir "$lock"
}

# fail CORRELATION CODE TYPE MESSAGE
fail() {
    send error "${1:-null}" "{\"error_type\":\"$3\",\"error_code\":\"$2\",\"message\":\"$4\",\"retryable\":false,\"details\":{}}"
}

request() {
    case $operation in
        '"agent.invoke"') ;;
        *) fail "$id_" E_UNKNOWN_OPERATION validation "there is no such operation"; return ;;
    esac
    case $agent in
        '"echo"') ;;
        *) fail "$id_" E_AGENT_NOT_FOUND not_found "there is no such agent"; return ;;
    esac
    send response "$id_" "{\"status\":\"success\",\"result\":$input,\"metadata\":{\"invoke_id\":${invoke:-\"$(new_id)\"},\"duration_ms\":0,\"tokens_used\":0}}"
}

control() {
    case $operation in
        '"ping"') send response "${id_:-null}" '{"status":"pong"}' ;;
        '"shutdown"')
            send response "${id_:-null}" '{"status":"shutting_down"}'
            wait
            exit 0 ;;
        '') ;;
        *) fail "$id_" E_UNKNOWN_OPERATION validation "there is no such operation" ;;
    esac
}

take() {
    printf '%s\n' "$1" | awk "$parser" | {
        read -r what
        if [ "$what" != frame ]; then
            fail null E_INVALID_INPUT validation "the line is no JSON object with a payload"
            return
        fi
        read -r type; read -r id_; read -r version; read -r operation
        read -r agent; read -r invoke; IFS= read -r input
        case $version in
            '' | null | '"1"' | '"1.'*) ;;
            *) fail "$id_" E_INVALID_INPUT validation "protocol_version is not supported; this is 1.0"
                return ;;
        esac
        case $type in
            '"request"')
                if [ -n "$id_" ]; then request; else
                    fail null E_INVALID_INPUT validation "a request needs a message_id"
                fi ;;
            '"control"') control ;;
            '"response"' | '"stream"' | '"error"') ;;
            *) fail "$id_" E_INVALID_INPUT validation "there is no such type" ;;
        esac
    }
}

directory=$(mktemp -d) || exit 1
lock=$directory/lock
trap 'rm -rf "$directory"' EXIT
trap 'exit 0' TERM INT

send control "" '{"status":"ready","module_name":"shell_worker","agents":["echo"]}'

while IFS= read -r line; do
    case $line in
        '' | "$(printf '\r')") ;;
        # What ends us is done here; everything else beside us.
        *'"shutdown"'*)
            case $line in *'"control"'*) take "$line"; wait; exit 0 ;; *) take "$line" & ;; esac ;;
        *) take "$line" & ;;
    esac
done
wait
exit 0
