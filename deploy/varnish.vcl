# Varnish in front of streams. In your VCL, before subroutines of your own:
#
#     include "flask-llmstream.vcl";

vcl 4.1;

sub vcl_recv {
    # Two clients that ask for the same URL would otherwise wait in a row, until the answer to the
    # first has begun and turns out not to be cacheable. EventSource asks by this name.
    if (req.http.Accept ~ "text/event-stream") {
        set req.hash_ignore_busy = true;
    }
}

sub vcl_backend_response {
    # No compression: it holds every token back to the end. No cache, whatever the rest of the VCL
    # does for other answers; it is not reached from here.
    if (beresp.http.Content-Type ~ "^(text/event-stream|application/x-ndjson)") {
        set beresp.do_gzip = false;
        set beresp.do_stream = true;
        set beresp.uncacheable = true;
        set beresp.ttl = 120s;
        return (deliver);
    }
}

# Varnish gives up after 60 s of silence (its parameter between_bytes_timeout). Each heartbeat starts
# that time anew; keep it above twice LLMSTREAM_HEARTBEAT_INTERVAL.
#
# Of a client that leaves Varnish tells the app nothing until the app has written to it, two or three
# times. So a heartbeat finds out, and LLMSTREAM_HEARTBEAT_INTERVAL says how soon; leave it on.
