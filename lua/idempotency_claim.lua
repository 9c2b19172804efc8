#!lua
-- Binds an idempotency key to one request, where another partition than the key's own decides the request. A different request
-- under the key is then refused even if yet another partition decides it. The caller reports the outcome with
-- idempotency_settle; until then the claim lives for its own, shorter time.
--
-- KEYS 1 meta    hash  state of the key's partition
--      2 record  list  fingerprint, CLAIMED, then the number of requests under way, or KEPT
-- ARGV 1 fingerprint  2 life of a claim whose requests are under way (ms)
-- Returns CLAIMED | KEY_REUSED | PARTITION_CLOSED
--@include lists
--@include partition
--@include idempotency
local meta, record, fingerprint, lease = KEYS[1], KEYS[2], ARGV[1], ARGV[2]

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local bound = redis.call('LRANGE', record, 0, 2)
if #bound > 0 and bound[1] ~= fingerprint then return { 'KEY_REUSED' } end
if #bound > 0 and (bound[2] ~= 'CLAIMED' or bound[3] == 'KEPT') then return { 'CLAIMED' } end
local requests = whole(tonumber(bound[3] or 0) + 1)
---- checks above, writes below -------------------------------------------------------------------------------------
return remember(record, fingerprint, lease, { 'CLAIMED', requests })
