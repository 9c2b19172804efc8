#!lua flags=allow-oom
-- Records up to which decision the projector has relayed effects and evicted orders. The mark never goes back: a Postgres that is
-- behind it has lost commits, and lacks orders that may have left Redis. Runs in a closed partition and when memory is exhausted,
-- too, because the trim of the outbox follows.
--
-- KEYS 1 meta  hash  partition state
-- ARGV 1 epoch  2 seq  3 id of the decision's entry
--      4 seq of the last mark of this epoch that the projector knows of (0: none)
-- Returns {'MARKED'} or STALE (the mark is there or further, or Redis has lost the partition)
--      or BEHIND (Redis lacks the mark that the projector knows of: a replica was promoted that may lack evictions, too)
local meta, epoch, seq, id, known = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local m = redis.call('HMGET', meta, 'store', 'relayed')
if not m[1] then return { 'STALE' } end
local marked_epoch, marked_seq = string.match(m[2] or '0:0:', '^(%d+):(%d+):')
marked_epoch, marked_seq = tonumber(marked_epoch), tonumber(marked_seq)
if marked_epoch > epoch or (marked_epoch == epoch and marked_seq >= seq) then return { 'STALE' } end
if known > (marked_epoch == epoch and marked_seq or 0) then return { 'BEHIND' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('HSET', meta, 'relayed', ARGV[1] .. ':' .. ARGV[2] .. ':' .. id)
return { 'MARKED' }
