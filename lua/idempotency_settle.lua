#!lua
-- Ends a claim of idempotency_claim. The key stays bound if the request was, or may have been, decided; the record is deleted
-- once all requests that claimed it were refused.
--
-- KEYS 1 meta    hash  state of the key's partition
--      2 record  list  fingerprint, CLAIMED, then the number of requests under way, or KEPT
-- ARGV 1 fingerprint  2 '1' where the key stays bound, else '0'  3 life of a bound key (ms)
--      4 life of a claim whose requests are under way (ms)
-- Returns SETTLED | PARTITION_CLOSED
--@include lists
--@include partition
--@include idempotency
local meta, record, fingerprint, keeps, ttl, lease = KEYS[1], KEYS[2], ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local bound = redis.call('LRANGE', record, 0, 2)
if bound[1] ~= fingerprint or bound[2] ~= 'CLAIMED' or bound[3] == 'KEPT' then return { 'SETTLED' } end
local others = tonumber(bound[3]) - 1
---- checks above, writes below -------------------------------------------------------------------------------------
if keeps then
  remember(record, fingerprint, ttl, { 'CLAIMED', 'KEPT' })
elseif others > 0 then
  remember(record, fingerprint, lease, { 'CLAIMED', whole(others) })
else
  redis.call('DEL', record)
end
return { 'SETTLED' }
